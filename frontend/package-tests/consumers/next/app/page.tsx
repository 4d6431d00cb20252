import { dehydrate, HydrationBoundary, QueryClient } from "@tanstack/react-query";
import { createClient, statusQueryOptions } from "pulso-etl";
import { Shown } from "./shown";

export const dynamic = "force-dynamic";

/** A server component reads the state with the package's options; the hooks in the browser begin with it. */
export default async function Page() {
  const queries = new QueryClient();
  const client = createClient({ baseUrl: process.env.PULSO_URL });
  await queries.prefetchQuery(statusQueryOptions(client));
  return (
    <HydrationBoundary state={dehydrate(queries)}>
      <Shown />
    </HydrationBoundary>
  );
}
