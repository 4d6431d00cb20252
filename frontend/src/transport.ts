import type { Refresh, Status } from "./types.js";

/** What to refresh: the named tables, or the tables of the dashboard. `force` also refreshes fresh tables. */
export interface RefreshRequest {
  force: boolean;
  tables?: string[] | undefined;
}

/** What the hooks need. The HTTP client has it, and `createGraphQLTransport` makes it. Every method rejects with an ETLError. */
export interface Transport {
  /** Asks for a refresh, and resolves at once. */
  launch(request: RefreshRequest, signal?: AbortSignal): Promise<Refresh>;
  /** How far it is now. */
  progress(refresh: Refresh, signal?: AbortSignal): Promise<Refresh>;
  /** The state of all tables. */
  status(signal?: AbortSignal): Promise<Status>;
}
