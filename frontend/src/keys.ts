import type { Transport } from "./transport.js";

const scopes = new WeakMap<Transport, string>();
let made = 0;

/** What tells the cached answers of one API and token from those of another. */
function scopeIn(client: Transport): string {
  if (client.scope !== undefined) return client.scope;
  const known = scopes.get(client) ?? `transport ${++made}`;
  scopes.set(client, known);
  return known;
}

/** The keys under which TanStack Query keeps what a client reads. Each key is the beginning of the keys below it. */
export const etlKeys = {
  all: (client: Transport) => ["pulso-etl", scopeIn(client)] as const,
  status: (client: Transport) => [...etlKeys.all(client), "status"] as const,
  /** The refreshes that were launched or looked at. */
  refreshes: (client: Transport) => [...etlKeys.all(client), "refresh"] as const,
  refresh: (client: Transport, pipelineId: string) => [...etlKeys.refreshes(client), pipelineId] as const,
  launch: (client: Transport) => [...etlKeys.all(client), "launch"] as const,
  /** The detail of a table: its last attempts and days. */
  table: (client: Transport, table: string) => [...etlKeys.all(client), "table", table] as const,
  /** What the last loads of a table changed. It is read again with the table. */
  changes: (client: Transport, table: string) => [...etlKeys.table(client, table), "changes"] as const,
  /** The key figures of all tables. */
  figures: (client: Transport) => [...etlKeys.all(client), "figures"] as const,
  /**
   * For your own queries of a table's rows: what you keep below this key is read again when rows of the table have changed. With
   * `days` (`2026-11-25`, or `2026-11-19..2026-11-25`), only when rows of these days have.
   */
  rows: (client: Transport, table: string, days?: string) =>
    [...etlKeys.all(client), "rows", table, ...(days === undefined ? [] : [days])] as const,
};
