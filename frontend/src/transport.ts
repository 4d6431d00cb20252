import type { Refresh, Status } from "./types.js";

/** What to refresh: the named tables, or those of the dashboard; also fresh ones where `force`. */
export interface RefreshRequest {
  force: boolean;
  tables?: string[] | undefined;
}

/** What the hooks need: the HTTP client is one, `createGraphQLTransport` makes another. Everything rejects with an ETLError. */
export interface Transport {
  /** Asks for a refresh and answers at once. */
  launch(request: RefreshRequest, signal?: AbortSignal): Promise<Refresh>;
  /** How far it is now. */
  progress(refresh: Refresh, signal?: AbortSignal): Promise<Refresh>;
  /** The state of all tables. */
  status(signal?: AbortSignal): Promise<Status>;
}
