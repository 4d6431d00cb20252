import type { Refresh, Status } from "./types.js";

/** What to refresh: the named tables, or the tables of the dashboard. `force` also refreshes fresh tables. */
export interface RefreshRequest {
  force: boolean;
  tables?: string[] | undefined;
}

/** What the hooks need. The HTTP client has it, and `createGraphQLTransport` makes it. Every method rejects with an ETLError. */
export interface Transport {
  /**
   * Names the API and the token, without revealing it: clients with the same scope share what TanStack Query keeps. A transport without
   * a scope shares nothing.
   */
  readonly scope?: string;
  /** Asks for a refresh, and resolves at once. */
  launch(request: RefreshRequest, signal?: AbortSignal): Promise<Refresh>;
  /** How far it is now. */
  progress(refresh: Refresh, signal?: AbortSignal): Promise<Refresh>;
  /** The state of all tables. */
  status(signal?: AbortSignal): Promise<Status>;
}

/** A scope for an API's address and a token. */
export function scopeOf(address: string, token: string | null | undefined): string {
  if (!token) return address;
  // FNV-1a: 32 bits tell tokens apart, and are far too few to find one.
  let hash = 0x811c9dc5;
  for (let at = 0; at < token.length; at += 1) hash = Math.imul(hash ^ token.charCodeAt(at), 0x01000193) >>> 0;
  return `${address}#${hash.toString(36)}`;
}
