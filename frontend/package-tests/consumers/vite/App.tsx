import { createClient, ETLProvider, useETLRefresh, useETLStatus, useTable } from "pulso-etl";

export function App({ baseUrl }: { baseUrl: string }) {
  return (
    <ETLProvider client={createClient({ baseUrl })}>
      <Shown />
    </ETLProvider>
  );
}

function Shown() {
  const { status, isLoading } = useETLStatus();
  const { triggerRefresh, isRefreshing } = useETLRefresh();
  const { dataVersion } = useTable("dashboard_data");
  return (
    <button type="button" disabled={isRefreshing} onClick={() => void triggerRefresh()}>
      {isLoading ? "loading" : `${status?.running} running, version ${dataVersion}`}
    </button>
  );
}
