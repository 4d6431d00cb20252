/** What is read again when the API tells of a change. */
import { focusManager, type QueryClient, type QueryKey } from "@tanstack/react-query";
import type { DataChange } from "./events.js";
import { etlKeys } from "./keys.js";
import type { Transport } from "./transport.js";
import type { Status, TableStatus } from "./types.js";

const DAY = /^\d{4}-\d\d-\d\d/;

/**
 * Compares a newly told state of all tables with the one that is kept. The details of tables that have changed are read again,
 * and the key figures. Returns the tables whose rows have changed.
 */
export function compare(queries: QueryClient, client: Transport, told: Status): string[] {
  const known = queries.getQueryData<Status>(etlKeys.status(client));
  const before = new Map(known?.tables.map((table) => [table.table, table]));
  const both = told.tables.flatMap((table) => {
    const old = before.get(table.table);
    return old ? [{ old, table }] : [];
  });
  const moved = both.filter(({ old, table }) => attemptOf(old) !== attemptOf(table));
  for (const { table } of moved) readAgain(queries, etlKeys.table(client, table.table));
  if (moved.length > 0) readAgain(queries, etlKeys.figures(client));
  return both.filter(({ old, table }) => versionOf(old) !== versionOf(table)).map(({ table }) => table.table);
}

/** Reads again what is below the table's key of rows, as far as it is about the days that have changed. */
export function readRowsAgain(
  queries: QueryClient,
  client: Transport,
  { table, days }: Pick<DataChange, "table" | "days">,
): void {
  const prefix = etlKeys.rows(client, table);
  readAgain(queries, prefix, (key) => overlaps(key[prefix.length], days));
}

function readAgain(queries: QueryClient, queryKey: QueryKey, about: (key: QueryKey) => boolean = () => true): void {
  // A hidden tab reads again when it is shown.
  const refetchType = focusManager.isFocused() ? "active" : "none";
  void queries.invalidateQueries({ queryKey, refetchType, predicate: (query) => about(query.queryKey) });
}

/** Whether days that a key names, if it names days, are among those that have changed. Null: any day may have changed. */
function overlaps(named: unknown, changed: readonly string[] | null): boolean {
  if (changed === null || typeof named !== "string" || !DAY.test(named)) return true;
  const [first, last] = ends(named);
  return changed.some((days) => {
    const [start, end] = ends(days);
    return start <= last && first <= end;
  });
}

function ends(days: string): [string, string] {
  const [first = "", last = first] = days.split("..");
  return [first, last];
}

/** Changes whenever an attempt to load the table begins or ends, and when its rows change. */
function attemptOf(table: TableStatus): string {
  const { run_id, status, last_extracted_at, run_under_way } = table;
  return JSON.stringify([run_id, status, last_extracted_at, run_under_way?.run_id, versionOf(table)]);
}

/** The version of the table's rows. Over GraphQL there is none: there each load counts. */
function versionOf({ data_version, last_extracted_at }: TableStatus): number | string | null {
  return data_version ?? last_extracted_at ?? null;
}
