import createFetchClient from "openapi-fetch";
import { asETLError, ETLError, refusal } from "./errors.js";
import { type Listening, listen } from "./events.js";
import type { paths } from "./schema.js";
import { type RefreshRequest, scopeOf, type Transport } from "./transport.js";
import type {
  Cleanup,
  Contact,
  Extraction,
  ExtractionMode,
  Figures,
  Health,
  PartitionStatus,
  Refresh,
  RefreshSummary,
  SourceUpdated,
  Status,
  TableChanges,
  TableConfig,
  TableDetail,
  Undoing,
} from "./types.js";

export type ChangesQuery = NonNullable<
  paths["/api/v1/etl/status/table/{table_name}/changes"]["get"]["parameters"]["query"]
>;
export type UndoQuery = NonNullable<paths["/api/v1/etl/undo/table/{table_name}"]["post"]["parameters"]["query"]>;

export interface ClientOptions {
  /** Where the API is, such as `https://pulso.example.com`. The default is the page's own origin. */
  baseUrl?: string | undefined;
  /** Sent as `Authorization: Bearer`. */
  token?: string | null | undefined;
  /** Used instead of the global `fetch`. */
  fetch?: typeof globalThis.fetch | undefined;
}

/** What a token may do: `read` looks, `refresh` also launches refreshes, `admin` does everything. */
export type Role = "read" | "refresh" | "admin";

/** The state of all tables, and what the caller may do. */
export interface Session {
  role: Role;
  status: Status;
}

type TableQuery = NonNullable<paths["/api/v1/etl/refresh/table/{table_name}"]["post"]["parameters"]["query"]>;
type DashboardRequest = { force?: boolean; tables?: string[] | null; max_concurrent?: number };

/** The HTTP API. Every method rejects with an ETLError, or with the reason of its signal if the signal was aborted. */
export interface ETLClient extends Transport {
  /** Refreshes the named tables, or the tables of the dashboard. It skips fresh tables unless `force` is true. */
  refreshDashboard(request?: DashboardRequest, signal?: AbortSignal): Promise<Refresh>;
  refreshTable(table: string, options?: TableQuery, signal?: AbortSignal): Promise<Refresh>;
  refreshProgress(pipelineId: string, signal?: AbortSignal): Promise<Refresh>;
  /** The refreshes that somebody asked for, the newest first. */
  refreshes(limit?: number, signal?: AbortSignal): Promise<RefreshSummary[]>;
  /** Ends a refresh's runs that wait or go on. */
  endRefresh(pipelineId: string, signal?: AbortSignal): Promise<Refresh>;
  session(signal?: AbortSignal): Promise<Session>;
  tableStatus(table: string, signal?: AbortSignal): Promise<TableDetail>;
  /** Days of a table up to the day before `before`, oldest first. */
  tableDays(table: string, before?: string, days?: number, signal?: AbortSignal): Promise<PartitionStatus[]>;
  /** Attempts of a table before the one with the id `before`, newest first. */
  tableExtractions(table: string, before?: number, limit?: number, signal?: AbortSignal): Promise<Extraction[]>;
  /** What the last loads of a table changed, or with `load` that load and its rows. Values are exact, so they are texts. */
  tableChanges(table: string, query?: ChangesQuery, signal?: AbortSignal): Promise<TableChanges>;
  /** Undoes a load of a table. For administrators. */
  undo(table: string, query?: UndoQuery, signal?: AbortSignal): Promise<Undoing>;
  /** The key figures of today, beside those of earlier days. Values are exact, so they are texts. */
  figures(signal?: AbortSignal): Promise<Figures>;
  /** The rows of a table from one day to another as CSV, at most of 366 days. */
  tableRows(table: string, from: string, to: string, signal?: AbortSignal): Promise<Blob>;
  /** It resolves even if a part of the deployment fails; then `ready` is false. */
  health(signal?: AbortSignal): Promise<Health>;
  tables(signal?: AbortSignal): Promise<TableConfig[]>;
  extractionModes(signal?: AbortSignal): Promise<ExtractionMode[]>;
  /** Whom to ask for help. */
  contact(signal?: AbortSignal): Promise<Contact>;
  /** Says that a source in BigQuery was updated: the tables that read it are refreshed soon. */
  announceUpdate(source: string, updatedAt?: string, signal?: AbortSignal): Promise<SourceUpdated>;
  /** Ends extractions that died or hang. For administrators. */
  cleanup(signal?: AbortSignal): Promise<Cleanup>;
  /** Reports each change, until you call the returned function. */
  events(listening: Listening): () => void;
}

interface Answered<T> {
  data?: T;
  error?: unknown;
  response: Response;
}

export function createClient(options: ClientOptions = {}): ETLClient {
  const baseUrl = (options.baseUrl ?? globalThis.location?.origin ?? "").replace(/\/+$/, "");
  const headers: Record<string, string> = options.token ? { Authorization: `Bearer ${options.token}` } : {};
  const request = options.fetch ?? ((input, init) => globalThis.fetch(input, init));
  const http = createFetchClient<paths>({ baseUrl, headers, fetch: request });

  const client: ETLClient = {
    scope: scopeOf(baseUrl, options.token),
    refreshDashboard: async (body = {}, signal) =>
      data(
        http.POST("/api/v1/etl/refresh/dashboard", {
          body: { force: false, max_concurrent: 2, ...body },
          ...given(signal),
        }),
      ),
    refreshTable: async (table_name, query = {}, signal) =>
      data(
        http.POST("/api/v1/etl/refresh/table/{table_name}", {
          params: { path: { table_name }, query },
          ...given(signal),
        }),
      ),
    refreshProgress: async (pipeline_id, signal) =>
      data(http.GET("/api/v1/etl/refresh/{pipeline_id}", { params: { path: { pipeline_id } }, ...given(signal) })),
    refreshes: async (limit = 20, signal) =>
      data(http.GET("/api/v1/etl/refreshes", { params: { query: { limit } }, ...given(signal) })),
    endRefresh: async (pipeline_id, signal) =>
      data(http.DELETE("/api/v1/etl/refresh/{pipeline_id}", { params: { path: { pipeline_id } }, ...given(signal) })),
    status: async (signal) => data(http.GET("/api/v1/etl/status", given(signal))),
    async session(signal) {
      const found = await answered(http.GET("/api/v1/etl/status", given(signal)));
      return { role: (found.response.headers.get("Pulso-Role") ?? "read") as Role, status: ok(found) };
    },
    tableStatus: async (table_name, signal) =>
      data(http.GET("/api/v1/etl/status/table/{table_name}", { params: { path: { table_name } }, ...given(signal) })),
    tableDays: async (table_name, before, days, signal) =>
      data(
        http.GET("/api/v1/etl/status/table/{table_name}/days", {
          params: { path: { table_name }, query: { ...(before && { before }), ...(days && { days }) } },
          ...given(signal),
        }),
      ),
    tableExtractions: async (table_name, before, limit, signal) =>
      data(
        http.GET("/api/v1/etl/status/table/{table_name}/extractions", {
          params: { path: { table_name }, query: { ...(before && { before }), ...(limit && { limit }) } },
          ...given(signal),
        }),
      ),
    tableChanges: async (table_name, query = {}, signal) =>
      data(
        http.GET("/api/v1/etl/status/table/{table_name}/changes", {
          params: { path: { table_name }, query },
          ...given(signal),
        }),
      ),
    undo: async (table_name, query = {}, signal) =>
      data(
        http.POST("/api/v1/etl/undo/table/{table_name}", { params: { path: { table_name }, query }, ...given(signal) }),
      ),
    figures: async (signal) => data(http.GET("/api/v1/etl/figures", given(signal))),
    tableRows: async (table_name, from, to, signal) =>
      data(
        http.GET("/api/v1/etl/status/table/{table_name}/rows.csv", {
          params: { path: { table_name }, query: { from, to } },
          parseAs: "blob",
          ...given(signal),
        }),
      ),
    async health(signal) {
      const found = await answered(http.GET("/api/v1/etl/health", given(signal)));
      // If a part of the deployment fails, the answer is a 503 with the same shape.
      const failing = found.error as Partial<Health> | undefined;
      return failing?.parts ? (failing as Health) : ok(found);
    },
    tables: async (signal) => data(http.GET("/api/v1/etl/config/tables", given(signal))),
    extractionModes: async (signal) => data(http.GET("/api/v1/etl/config/extraction-modes", given(signal))),
    contact: async (signal) => data(http.GET("/api/v1/etl/config/contact", given(signal))),
    announceUpdate: async (source, updatedAt, signal) =>
      data(
        http.POST("/api/v1/etl/source/{source}/updated", {
          params: { path: { source } },
          body: updatedAt ? { updated_at: updatedAt } : null,
          ...given(signal),
        }),
      ),
    cleanup: async (signal) => data(http.POST("/api/v1/etl/cleanup", given(signal))),
    events: (listening) =>
      listen(
        (signal, lastEventId) =>
          request(`${baseUrl}/api/v1/etl/events`, {
            headers: lastEventId ? { ...headers, "Last-Event-ID": lastEventId } : headers,
            signal,
          }),
        client.status,
        listening,
      ),
    launch: ({ force, tables }: RefreshRequest, signal) =>
      client.refreshDashboard(tables ? { force, tables } : { force }, signal),
    progress: (refresh, signal) => client.refreshProgress(refresh.pipeline_id, signal),
  };
  return client;
}

function given(signal: AbortSignal | undefined): { signal?: AbortSignal } {
  return signal ? { signal } : {};
}

async function data<T>(call: Promise<Answered<T>>): Promise<T> {
  return ok(await answered(call));
}

function ok<T>({ data, error, response }: Answered<T>): T {
  if (!response.ok) throw refusal(response, error);
  return data as T;
}

async function answered<T>(call: Promise<Answered<T>>): Promise<Answered<T>> {
  try {
    return await call;
  } catch (error) {
    if (error instanceof SyntaxError)
      throw new ETLError("the answer is no JSON; is baseUrl the address of Pulso ETL?", 0, null, { cause: error });
    throw isAbort(error) ? error : asETLError(error);
  }
}

/** Whether the caller itself aborted the request. */
export function isAbort(error: unknown): boolean {
  return error instanceof Error && error.name === "AbortError";
}
