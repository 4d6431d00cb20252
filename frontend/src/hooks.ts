import {
  notifyManager,
  QueryClient,
  QueryClientContext,
  QueryClientProvider,
  skipToken,
  useMutation,
  useQuery,
} from "@tanstack/react-query";
import {
  createContext,
  createElement,
  type ReactNode,
  useCallback,
  useContext,
  useEffect,
  useRef,
  useState,
  useSyncExternalStore,
} from "react";
import { createClient, type ETLClient } from "./client.js";
import { asETLError, ETLError, failure } from "./errors.js";
import { etlKeys } from "./keys.js";
import { liveOf, type Signals } from "./live.js";
import { refreshMutationOptions, refreshQueryOptions, statusQueryOptions, tableQueryOptions } from "./queries.js";
import type { Transport } from "./transport.js";
import type { Refresh, Status, TableDetail, TableStatus } from "./types.js";

const Context = createContext<Transport | null>(null);
let sameOrigin: ETLClient | undefined;
let own: QueryClient | undefined;

/** Where the hooks keep what they read if the application has no QueryClientProvider. */
function ownQueries(): QueryClient {
  if (!own) {
    own = new QueryClient();
    own.mount();
  }
  return own;
}

/**
 * Gives the hooks below it their client. Without a provider they ask the page's own origin, without a token. What they read is kept
 * in the QueryClient of the application's QueryClientProvider, or in one of their own.
 */
export function ETLProvider({ client, children }: { client: Transport; children?: ReactNode }) {
  return createElement(
    Context.Provider,
    { value: client },
    createElement(QueryClientProvider, { client: useQueries() }, children),
  );
}

function useQueries(): QueryClient {
  return useContext(QueryClientContext) ?? ownQueries();
}

/** The client of the nearest provider, for queries of your own. */
export function useETLClient(): Transport {
  const given = useContext(Context);
  if (given) return given;
  sameOrigin ??= createClient();
  return sameOrigin;
}

export interface ETLRefresh {
  /**
   * Asks for a refresh of the named tables, or of the dashboard's tables, and watches it. `force` also refreshes fresh tables.
   * Resolves with the final state. What happens where the end is not known, or where the refresh failed, is the hook's `onFailure`;
   * `error` has the error in any case.
   */
  triggerRefresh: (force?: boolean, tables?: string[]) => Promise<Refresh | null>;
  isRefreshing: boolean;
  /** How far the refresh is, and its final state. Null before the first refresh. */
  progress: Refresh | null;
  /** Why the refresh was not launched, can't be watched now, or failed. */
  error: ETLError | null;
}

export interface RefreshOptions {
  /** Milliseconds between two looks at the refresh. */
  intervalMs?: number | undefined;
  /**
   * `reject`: `triggerRefresh` rejects with an ETLError, whose `kind` says why. `null`: it never rejects. It resolves with null if the
   * refresh was not launched or its end is not known, and with the final state if the refresh failed.
   */
  onFailure?: "reject" | "null" | undefined;
  /** What `triggerRefresh` refreshes if it names no tables. With it, only a refresh of these tables is found again. */
  tables?: readonly string[] | undefined;
  /** A refresh to show until this component launches one, such as `run_under_way.pipeline_id` of a table. For the HTTP client. */
  pipelineId?: string | null | undefined;
}

/** As `useRefresh`, with a `triggerRefresh` that never rejects. */
export function useETLRefresh(intervalMs = 1000, options: Omit<RefreshOptions, "intervalMs"> = {}): ETLRefresh {
  return useRefresh({ onFailure: "null", ...options, intervalMs });
}

/**
 * Asks for refreshes, and watches the last one. A component that has launched none shows the newest one of this client that goes on
 * and that nobody watches: so a refresh is found again after its component was unmounted.
 */
export function useRefresh({
  intervalMs = 1000,
  onFailure = "reject",
  tables,
  pipelineId,
}: RefreshOptions = {}): ETLRefresh {
  const client = useETLClient();
  const queries = useQueries();
  const { mutateAsync: launch } = useMutation(refreshMutationOptions(client), queries);
  const [watched, setWatched] = useState<{ client: Transport; refresh: Refresh | string } | null>(null);
  const [asking, setAsking] = useState(0);
  const [refusal, setRefusal] = useState<ETLError | null>(null);
  const life = useRef<AbortController | null>(null);
  const watching = useRef<AbortController | null>(null);

  // Another client is another life.
  const shown = watched?.client === client ? watched.refresh : (pipelineId ?? null);
  const { data, error, failureReason } = useQuery(
    shown === null
      ? { queryKey: etlKeys.refresh(client, ""), queryFn: skipToken }
      : refreshQueryOptions(client as ETLClient, shown, { intervalMs }),
    queries,
  );

  const wanted = tables?.join();
  useEffect(() => {
    const mine = new AbortController();
    life.current = mine;
    const adopt = (refresh: Refresh) => {
      if (!mine.signal.aborted) setWatched((known) => (known?.client === client ? known : { client, refresh }));
    };
    const found = findRefresh(queries, client, wanted);
    const launch = found ? undefined : findLaunch(queries, client, wanted);
    if (found) adopt(found);
    if (launch) {
      setAsking((count) => count + 1);
      void launch.answer.then(adopt, () => undefined).finally(() => setAsking((count) => count - 1));
    }
    return () => {
      mine.abort();
      watching.current?.abort();
    };
  }, [client, queries, wanted]);

  const ask = useCallback(
    async (force: boolean, tables: string[] | undefined): Promise<Refresh> => {
      const alive = life.current?.signal;
      if (!alive || alive.aborted) throw abandoned("the component is not mounted");
      setAsking((count) => count + 1);
      setRefusal(null);
      const launching = { client: etlKeys.all(client).join(), tables, owner: alive, answer: launch({ force, tables }) };
      const pending = launchesIn(queries).add(launching);
      let launched: Refresh;
      try {
        launched = await launching.answer;
      } catch (thrown) {
        setRefusal(asETLError(thrown));
        throw thrown;
      } finally {
        pending.delete(launching);
        setAsking((count) => count - 1);
      }
      if (alive.aborted) throw abandoned("the component was unmounted");
      watching.current?.abort();
      const watch = new AbortController();
      watching.current = watch;
      setWatched({ client, refresh: launched });
      const end = await ended(queries, etlKeys.refresh(client, launched.pipeline_id), watch.signal);
      const failed = failure(end);
      if (failed) throw failed;
      return end;
    },
    [client, queries, launch],
  );

  const triggerRefresh = useCallback(
    (force?: boolean, named?: string[]): Promise<Refresh | null> => {
      // As an onClick handler this function receives events, which are no answers to these questions.
      const given = Array.isArray(named) ? named : wanted?.split(",");
      const asked = ask(force === true, given);
      if (onFailure === "null") return asked.catch((error: ETLError) => error.refresh);
      // Who does not wait for the end sees the error in `error`.
      asked.catch(() => undefined);
      return asked;
    },
    [ask, wanted, onFailure],
  );

  const progress = shown === null ? null : (data ?? (typeof shown === "string" ? null : shown));
  return {
    triggerRefresh,
    isRefreshing: asking > 0 || (progress?.status === "running" && !error),
    progress,
    error: refusal ?? error ?? failureReason ?? (progress && failure(progress)),
  };
}

/** The newest refresh that goes on and that no component watches, of just these tables if some are named. */
function findRefresh(queries: QueryClient, client: Transport, tables: string | undefined): Refresh | undefined {
  return queries
    .getQueryCache()
    .findAll({ queryKey: etlKeys.refreshes(client), type: "inactive" })
    .flatMap(({ state }) => (state.data as Refresh | undefined) ?? [])
    .filter(({ status, tables_requested }) => status === "running" && areThese(tables_requested, tables))
    .sort((one, other) => Date.parse(other.started_at) - Date.parse(one.started_at))[0];
}

/** A launch that is not answered yet. The component that `owner` belongs to may be gone. */
interface Launch {
  client: string;
  tables: readonly string[] | undefined;
  owner: AbortSignal;
  answer: Promise<Refresh>;
}

const launches = new WeakMap<QueryClient, Set<Launch>>();

function launchesIn(queries: QueryClient): Set<Launch> {
  const known = launches.get(queries) ?? new Set<Launch>();
  launches.set(queries, known);
  return known;
}

/** A launch whose component is gone, of just these tables if some are named. */
function findLaunch(queries: QueryClient, client: Transport, tables: string | undefined): Launch | undefined {
  const mine = etlKeys.all(client).join();
  return [...launchesIn(queries)].find(
    (launch) => launch.owner.aborted && launch.client === mine && areThese(launch.tables, tables),
  );
}

function areThese(tables: readonly string[] | undefined, wanted: string | undefined): boolean {
  return wanted === undefined || [...(tables ?? [])].sort().join() === wanted.split(",").sort().join();
}

/** Resolves when the refresh is over. Rejects with an ETLError if its end can't be known, or if the signal is aborted. */
function ended(queries: QueryClient, queryKey: readonly unknown[], signal: AbortSignal): Promise<Refresh> {
  const cache = queries.getQueryCache();
  const query = cache.find<Refresh, ETLError>({ queryKey, exact: true });
  return new Promise((resolve, reject) => {
    const look = () => {
      const { data, error } = query?.state ?? {};
      if (signal.aborted) settle(() => reject(abandoned("nobody watches the refresh any more")));
      else if (error) settle(() => reject(error));
      else if (data && data.status !== "running") settle(() => resolve(data));
    };
    const stop = cache.subscribe((event) => {
      if (event.query === query) look();
    });
    // Components hear of it first.
    const settle = (how: () => void) => {
      stop();
      signal.removeEventListener("abort", look);
      notifyManager.schedule(how);
    };
    signal.addEventListener("abort", look);
    look();
  });
}

function abandoned(message: string): ETLError {
  return new ETLError(message, 0, null, { kind: "abandoned" });
}

export interface ETLStatus {
  /** The last known state. Null before the first answer. Errors do not clear it. */
  status: Status | null;
  error: ETLError | null;
  /** Whether the first answer, or the answer to a `refetch`, has not come yet. */
  isLoading: boolean;
  /** Asks at once. */
  refetch: () => void;
}

/** The state of all tables, asked for every `intervalMs`. Components share one request. A refused token ends the asking. */
export function useETLStatus(intervalMs = 30_000): ETLStatus {
  const queries = useQueries();
  const { data, isFetched, isFetching, error, refetch } = useQuery(
    statusQueryOptions(useETLClient(), { intervalMs }),
    queries,
  );
  const [asking, setAsking] = useState(false);
  const known = useLastError(error, isFetching);
  const ask = useCallback(() => {
    setAsking(true);
    void refetch().finally(() => setAsking(false));
  }, [refetch]);
  return { status: data ?? null, error: known, isLoading: asking || !isFetched, refetch: ask };
}

/** The last error, also while the query asks again. */
function useLastError(error: ETLError | null, isFetching: boolean): ETLError | null {
  const [last, setLast] = useState(error);
  if (isFetching || last === error) return error ?? last;
  setLast(error);
  return error;
}

export interface ETLTable {
  /** The table's state. Null before the first answer. */
  table: TableStatus | null;
  /** Its last attempts and days. Null before the first answer. */
  detail: TableDetail | null;
  /** Grows by one after each load that changed rows, and never otherwise. Null if it is not known. */
  dataVersion: number | null;
  /** Begin the keys of your own queries of the table's rows with it: they are read again when its rows change. */
  rowsKey: readonly unknown[];
  error: ETLError | null;
  isLoading: boolean;
}

/**
 * A table, bound to the version of its rows: its detail, and your queries below `rowsKey`, are read again when it changes, and not
 * otherwise. It needs the HTTP client.
 */
export function useTable(name: string, intervalMs = 30_000): ETLTable {
  const queries = useQueries();
  const client = useETLClient();
  if (!("tableStatus" in client)) throw new ETLError("useTable needs the HTTP client (createClient)");
  const status = useQuery(statusQueryOptions(client, { intervalMs }), queries);
  const detail = useQuery(tableQueryOptions(client as ETLClient, name), queries);
  const table = status.data?.tables.find(({ table }) => table === name) ?? detail.data?.table ?? null;
  return {
    table,
    detail: detail.data ?? null,
    dataVersion: table?.data_version ?? null,
    rowsKey: etlKeys.rows(client, name),
    error: detail.error ?? detail.failureReason ?? status.error,
    isLoading: !detail.isFetched || !status.isFetched,
  };
}

export interface ETLEvents extends Signals {
  status: Status | null;
}

/**
 * The state of all tables as it changes, by the events of the HTTP client. Until the first event, it is what is known already, or
 * `initial`. Components share one stream, and the queries of what has changed are read again.
 */
export function useETLEvents(client: ETLClient, initial: Status | null = null): ETLEvents {
  const queries = useQueries();
  const live = liveOf(queries, client);
  const signals = useSyncExternalStore(live.subscribe, live.current, live.current);
  const { data } = useQuery({ ...statusQueryOptions(client), enabled: false }, queries);
  return { ...signals, status: data ?? initial };
}
