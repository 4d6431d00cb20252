/** What TanStack Query has to know to read the API. Give these options to any of its hooks and methods. */
import {
  type DataTag,
  mutationOptions,
  type QueryKey,
  queryOptions,
  type UnusedSkipTokenOptions,
  type UseMutationOptions,
} from "@tanstack/react-query";
import { compare, readRowsAgain } from "./changes.js";
import type { ETLClient } from "./client.js";
import { asETLError, type ETLError } from "./errors.js";
import { etlKeys } from "./keys.js";
import type { RefreshRequest, Transport } from "./transport.js";
import type { Figures, Refresh, Status, TableChanges, TableDetail } from "./types.js";
import { backOff } from "./wait.js";

/** What `queryOptions` makes: for `useQuery`, `useSuspenseQuery`, `fetchQuery` and the like. */
export type ETLQueryOptions<Data, Key extends QueryKey> = UnusedSkipTokenOptions<Data, ETLError, Data, Key> & {
  queryKey: DataTag<Key, Data, ETLError>;
};
export type StatusQueryOptions = ETLQueryOptions<Status, ReturnType<typeof etlKeys.status>>;
export type TableQueryOptions = ETLQueryOptions<TableDetail, ReturnType<typeof etlKeys.table>>;
export type ChangesQueryOptions = ETLQueryOptions<TableChanges, ReturnType<typeof etlKeys.changes>>;
export type FiguresQueryOptions = ETLQueryOptions<Figures, ReturnType<typeof etlKeys.figures>>;
export type RefreshQueryOptions = ETLQueryOptions<Refresh, ReturnType<typeof etlKeys.refresh>>;
export type RefreshMutationOptions = UseMutationOptions<Refresh, ETLError, Partial<RefreshRequest>>;

export interface Polling {
  /** Milliseconds between two looks. A hidden tab does not look. */
  intervalMs?: number | undefined;
}

/** How long a refresh that nobody watches is kept, so that it is found again. */
const KEPT_MS = 86_400_000;
const STATUS_MS = 30_000;
const FIGURES_MS = 600_000;
const PROGRESS_MS = 1_000;
const RETRY_MS = 1_000;
/** The API's answers do not depend on whether the browser believes that it is online: it may be on this machine. */
const ALWAYS = { networkMode: "always" } as const;

/** The state of all tables. After a refused token nothing asks again by itself. When rows have changed, their queries are read again. */
export function statusQueryOptions(client: Transport, { intervalMs = STATUS_MS }: Polling = {}): StatusQueryOptions {
  return queryOptions<Status, ETLError, Status, ReturnType<typeof etlKeys.status>>({
    ...ALWAYS,
    ...untilRefused(),
    queryKey: etlKeys.status(client),
    queryFn: async ({ signal, client: queries }) => {
      const told = await client.status(signal);
      for (const table of compare(queries, client, told)) readRowsAgain(queries, client, { table, days: null });
      return told;
    },
    retry: false,
    staleTime: intervalMs,
    refetchInterval: ({ state: { error } }) => {
      if (error?.refused) return false;
      return error?.retryAfter == null ? intervalMs : error.retryAfter * 1000;
    },
  });
}

/** A table with its last attempts and days. It is read again when the state of the tables tells of another attempt or version. */
export function tableQueryOptions(
  client: Pick<ETLClient, "tableStatus"> & Transport,
  table: string,
): TableQueryOptions {
  return queryOptions<TableDetail, ETLError, TableDetail, ReturnType<typeof etlKeys.table>>({
    ...ALWAYS,
    ...untilRefused(),
    ...whileItPasses(RETRY_MS),
    queryKey: etlKeys.table(client, table),
    queryFn: ({ signal }) => client.tableStatus(table, signal),
    staleTime: STATUS_MS,
  });
}

/** What the last loads of a table changed, the newest first. It is read again with the table. */
export function changesQueryOptions(
  client: Pick<ETLClient, "tableChanges"> & Transport,
  table: string,
): ChangesQueryOptions {
  return queryOptions<TableChanges, ETLError, TableChanges, ReturnType<typeof etlKeys.changes>>({
    ...ALWAYS,
    ...untilRefused(),
    ...whileItPasses(RETRY_MS),
    queryKey: etlKeys.changes(client, table),
    queryFn: ({ signal }) => client.tableChanges(table, {}, signal),
    staleTime: STATUS_MS,
  });
}

/** The key figures of all tables. They are read again when a table was loaded or looked at, and from time to time: days end. */
export function figuresQueryOptions(client: Pick<ETLClient, "figures"> & Transport): FiguresQueryOptions {
  return queryOptions<Figures, ETLError, Figures, ReturnType<typeof etlKeys.figures>>({
    ...ALWAYS,
    ...untilRefused(),
    ...whileItPasses(RETRY_MS),
    queryKey: etlKeys.figures(client),
    queryFn: ({ signal }) => client.figures(signal),
    staleTime: STATUS_MS,
    refetchInterval: ({ state: { error } }) => (error?.refused ? false : FIGURES_MS),
  });
}

/** How far a refresh is, until it is over. `refresh` is what the launch answered, or over the HTTP API only its `pipeline_id`. */
export function refreshQueryOptions(client: Transport, refresh: Refresh, polling?: Polling): RefreshQueryOptions;
export function refreshQueryOptions(
  client: ETLClient,
  refresh: Refresh | string,
  polling?: Polling,
): RefreshQueryOptions;
export function refreshQueryOptions(
  client: Transport | ETLClient,
  refresh: Refresh | string,
  { intervalMs = PROGRESS_MS }: Polling = {},
): RefreshQueryOptions {
  const launched = typeof refresh === "string" ? null : refresh;
  const pipelineId = typeof refresh === "string" ? refresh : refresh.pipeline_id;
  const queryKey = etlKeys.refresh(client, pipelineId);
  return queryOptions<Refresh, ETLError, Refresh, ReturnType<typeof etlKeys.refresh>>({
    ...ALWAYS,
    ...untilRefused(),
    ...whileItPasses(intervalMs),
    queryKey,
    queryFn: async ({ signal, client: queries }) => {
      const known = () => queries.getQueryData<Refresh>(queryKey) ?? launched;
      // An id alone is enough for the HTTP client.
      const told = await client.progress(known() ?? ({ pipeline_id: pipelineId } as Refresh), signal);
      if (told.status !== "running") void queries.invalidateQueries({ queryKey: etlKeys.status(client) });
      // Only the answer to the launch knows this, so it is kept. The same refresh may have been launched again meanwhile.
      return { ...told, already_running: known()?.already_running ?? told.already_running };
    },
    gcTime: KEPT_MS,
    staleTime: ({ state: { data } }) => (data && data.status !== "running" ? Number.POSITIVE_INFINITY : intervalMs),
    refetchInterval: ({ state: { data, error } }) => (error || data?.status !== "running" ? false : intervalMs),
  });
}

/** Asks for a refresh. Its result is kept below `etlKeys.refreshes`, so that whoever asks finds it again. */
export function refreshMutationOptions(client: Transport): RefreshMutationOptions {
  return mutationOptions<Refresh, ETLError, Partial<RefreshRequest>>({
    ...ALWAYS,
    mutationKey: etlKeys.launch(client),
    mutationFn: async ({ force = false, tables }) => {
      try {
        return await client.launch({ force, tables });
      } catch (thrown) {
        throw asETLError(thrown);
      }
    },
    onSuccess: (launched, _, __, { client: queries }) => {
      queries.setQueryDefaults(etlKeys.refreshes(client), { gcTime: KEPT_MS });
      queries.setQueryData(etlKeys.refresh(client, launched.pipeline_id), launched);
      void queries.invalidateQueries({ queryKey: etlKeys.status(client) });
    },
    retry: false,
  });
}

/** After a refused token only a `refetch`, or a client with another token, asks again. */
function untilRefused() {
  const willing = ({ state }: { state: { error: ETLError | null } }) => !state.error?.refused;
  return { refetchOnMount: willing, refetchOnReconnect: willing, refetchOnWindowFocus: willing, retryOnMount: willing };
}

/** Asks again with growing pauses while the reason of a failure may pass. */
function whileItPasses(firstMs: number) {
  return {
    retry: (_: number, error: ETLError) => error.passes,
    retryDelay: (failures: number, error: ETLError) => backOff(failures + 1, firstMs, error.retryAfter),
  };
}
