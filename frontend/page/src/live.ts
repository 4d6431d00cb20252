/** What the page keeps up to date: the time, the histories of the tables, and the text for a screen reader. */
import { useQueries } from "@tanstack/react-query";
import { useEffect, useMemo, useRef, useState } from "react";
import {
  type ETLClient,
  type ETLEvents,
  type Status,
  type TableDetail,
  type TableRun,
  type TableStatus,
  tableQueryOptions,
} from "../../src";
import { isDatabaseAway, isOffline, type Outlook } from "./state";
import { PROGRESS, type Titles } from "./words";

const TICK_MS = 5_000;

/** What the page knows of the time and of who answers. The server's clock may differ from this machine's. */
export function useOutlook(status: Status, events: ETLEvents): Outlook {
  const [clock, setClock] = useState(() => Date.now());
  const skew = useMemo(() => Date.parse(status.generated_at) - Date.now(), [status.generated_at]);
  useEffect(() => {
    const timer = setInterval(() => setClock(Date.now()), TICK_MS);
    return () => clearInterval(timer);
  }, []);
  // An event can be newer than the last tick of the clock.
  const here = Math.max(clock, events.heardAt);
  const databaseAway = isDatabaseAway(events);
  const knownAt = useRef(events.heardAt + skew);
  if (!databaseAway) knownAt.current = events.heardAt + skew;
  const now = here + skew;
  const offline = isOffline(events, here);
  const known = knownAt.current;
  return useMemo(() => ({ now, offline, databaseAway, knownAt: known }), [now, offline, databaseAway, known]);
}

/** The histories by table, as far as they are known. */
export function useDetails(client: ETLClient, tables: readonly TableStatus[]): Record<string, TableDetail> {
  return useQueries({ queries: tables.map(({ table }) => tableQueryOptions(client, table)), combine: byTable });
}

function byTable(found: { data: TableDetail | undefined }[]): Record<string, TableDetail> {
  return Object.fromEntries(found.flatMap(({ data }) => (data ? [[data.table.table, data]] : [])));
}

/** How far the table's refresh is: its running run, or else the result of the refresh that was asked for on this page. */
export function progressOf(table: TableStatus, asked: TableRun | null): TableRun | null {
  const run = table.run_under_way;
  if (run) return { ...run, table: table.table, message: asked?.message ?? null };
  return asked && stands(asked, table) ? asked : null;
}

/** Whether the refresh that was asked for on this page is still the last one of the table. */
function stands({ state, run_id, finished_at }: TableRun, table: TableStatus): boolean {
  switch (state) {
    case "success":
      return table.run_id === run_id;
    case "skipped":
      return table.freshness === "fresh";
    case "failed":
    case "canceled":
      return !finished_at || !table.last_extracted_at || Date.parse(table.last_extracted_at) < Date.parse(finished_at);
    default:
      return true;
  }
}

/** A sentence for each change of a table's progress. */
export function useAnnouncement(progress: Record<string, TableRun | null>, titles: Titles): string {
  const [announcement, setAnnouncement] = useState("");
  const known = useRef<Record<string, string>>({});
  useEffect(() => {
    const told: string[] = [];
    for (const [table, run] of Object.entries(progress)) {
      const state = run ? run.state : "";
      if (run && known.current[table] !== undefined && known.current[table] !== state) {
        told.push(`${titles[table]}: ${PROGRESS[run.state].text.toLowerCase()}.`);
      }
      known.current[table] = state;
    }
    if (told.length > 0) setAnnouncement(told.join(" "));
  }, [progress, titles]);
  return announcement;
}
