import { QueryClient, useMutation, useQuery, useSuspenseQuery } from "@tanstack/react-query";
import {
  createClient,
  type ETLError,
  ETLProvider,
  etlKeys,
  type Refresh,
  refreshMutationOptions,
  refreshQueryOptions,
  type Status,
  statusQueryOptions,
  useETLRefresh,
  useETLStatus,
  useRefresh,
  useTable,
} from "pulso-etl";
import { createGraphQLTransport } from "pulso-etl/graphql";

const client = createClient({ baseUrl: "https://pulso.example.com", token: "t" });

export function App() {
  return (
    <ETLProvider client={client}>
      <ETLProvider client={createGraphQLTransport()}>
        <Shown />
      </ETLProvider>
    </ETLProvider>
  );
}

function Shown() {
  const { triggerRefresh, error } = useETLRefresh();
  const strict = useRefresh({ tables: ["dashboard_data"], onFailure: "reject" });
  const { status } = useETLStatus(30_000);
  const query = useQuery(statusQueryOptions(client));
  const told: Status | undefined = query.data;
  const why: ETLError | null = query.error;
  const suspended: Status = useSuspenseQuery(statusQueryOptions(client)).data;
  const launch = useMutation(refreshMutationOptions(client));
  const watched: Refresh | undefined = useQuery(refreshQueryOptions(client, "p1")).data;
  const { dataVersion, rowsKey } = useTable("dashboard_data");
  const cached: Status | undefined = new QueryClient().getQueryData(statusQueryOptions(client).queryKey);
  // @ts-expect-error a status is no number
  const wrong: number = suspended;
  const key: readonly unknown[] = [...etlKeys.rows(client, "dashboard_data", "2026-11-25"), ...rowsKey];
  return (
    <button type="button" onClick={() => void triggerRefresh(true, ["dashboard_data"])}>
      {[status, told, why, watched, dataVersion, cached, wrong, key, error, strict.error].length}
      {String(launch.isPending)}
    </button>
  );
}
