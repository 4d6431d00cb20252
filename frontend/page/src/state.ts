/** The page's decisions, as pure functions of the last state and its time. Times are milliseconds since 1970 by the server's clock. */
import words from "../../../pulso_etl/words/words.json";
import type { Condition, Connection, ETLEvents, Extraction, Status, TableStatus } from "../../src";
import { clockTime, count } from "./format";
import type { Label } from "./words";

/** The API says something this often while a connection is open; in between, the page may ask at most every 30 s. */
const SIGNAL_MS: Partial<Record<Connection, number>> = { polling: 30_000 };
const LIVE_SIGNAL_MS = 15_000;
const LATE_MS = 2_000;
const MISSED = 2;
const DESTINATION = new Set(["destination_unavailable", "destination_refused"]);
const OUTAGES = new Set<keyof typeof words.page>(["offline", "postgresql_away", "dagster_away", "daemon_silent"]);
const ORDER: Condition[] = ["failed", "stale", "never", "due", "fresh"];

/** What the page can't know by itself: who answers, and since when nobody does. */
export interface Outlook {
  now: number;
  /** Two signals of the API are missing. */
  offline: boolean;
  /** The API answers, and PostgreSQL does not answer it. */
  databaseAway: boolean;
  /** Until when what is shown was true. */
  knownAt: number;
}

export function isOffline(
  { connection, heardAt, missed }: Pick<ETLEvents, "connection" | "heardAt" | "missed">,
  now: number,
): boolean {
  const patience = MISSED * (SIGNAL_MS[connection] ?? LIVE_SIGNAL_MS) + LATE_MS;
  return connection === "closed" || missed >= MISSED || now - heardAt > patience;
}

export function isDatabaseAway({ error }: Pick<ETLEvents, "error">): boolean {
  return error?.failure != null && DESTINATION.has(error.failure.cause);
}

/** The table's state now. A table that was fresh or due in the last answer becomes older without a further answer. */
export function stateOf({ state, due_at, stale_after }: TableStatus, now: number): Condition {
  if (state !== "fresh" && state !== "due") return state;
  if (stale_after && now > Date.parse(stale_after)) return "stale";
  return state === "due" || (due_at && now >= Date.parse(due_at)) ? "due" : "fresh";
}

/** The tables, those with problems first; otherwise in the order of the API. */
export function worstFirst(tables: readonly TableStatus[], now: number): TableStatus[] {
  const place = (table: TableStatus) => ORDER.indexOf(stateOf(table, now));
  return [...tables].sort((one, other) => place(one) - place(other));
}

export interface Banner extends Omit<Label, "tone"> {
  tone: "good" | "warn" | "bad";
  why: string;
  /** The tables with problems. */
  troubled: TableStatus[];
  /** Whether a part of Pulso is away; otherwise it is about the tables. */
  outage: boolean;
}

/** The state of the whole in one sentence, a second sentence that says why, and the tables that it is about. */
export function bannerOf(status: Status, { now, offline, databaseAway, knownAt }: Outlook): Banner {
  const troubled = worstFirst(status.tables, now).filter((table) => !["fresh", "due"].includes(stateOf(table, now)));
  const worst = troubled[0] && stateOf(troubled[0], now);
  const at = new Date(knownAt).toISOString();
  if (offline) return say("offline", "bad", "alert", { time: clockTime(at, now, true) }, troubled);
  if (databaseAway) return say("postgresql_away", "bad", "alert", { time: clockTime(at, now, true) }, troubled);
  if (!status.dagster) return say("dagster_away", "bad", "alert", {}, troubled);
  if (status.daemon === false) {
    const seen = status.daemon_seen_at ? clockTime(status.daemon_seen_at, now) : "hace tiempo";
    return say("daemon_silent", "bad", "alert", { time: seen }, troubled);
  }
  if (worst === "failed") return say("trouble", "bad", "alert", {}, troubled);
  if (status.automation === false) return say("automation_off", "warn", "clock", {}, troubled);
  if (worst === "stale") return say("trouble", "warn", "alert", {}, troubled);
  if (worst === "never") return say("never", "warn", "empty", {}, troubled);
  return say("well", "good", "check", { tables: count(status.tables.length, "tabla") }, []);
}

function say(
  which: keyof typeof words.page,
  tone: Banner["tone"],
  icon: Banner["icon"],
  values: Record<string, string>,
  troubled: TableStatus[],
): Banner {
  const fill = (text: string) => text.replace(/\{(\w+)\}/g, (_, name: string) => values[name] ?? "");
  const { text, why } = words.page[which];
  return { text: fill(text), why: fill(why), tone, icon, troubled, outage: OUTAGES.has(which) };
}

/** When the table is refreshed next, as far as that is known; null while that goes on. */
export function nextRefresh(table: TableStatus, status: Status, outlook: Outlook): string | null {
  if (outlook.offline) return "no se sabe";
  if (table.run_under_way) return null;
  if (outlook.databaseAway || !status.dagster || status.daemon === false) return "en pausa";
  if (status.automation === false) return "solo a pedido";
  if (table.next_due && Date.parse(table.next_due) > outlook.now) return clockTime(table.next_due, outlook.now);
  return "le toca ahora";
}

/** What a load changed: "12 nuevas, 3 cambiadas"; "sin cambios". */
export function changeOf(load: Extraction | null | undefined): string {
  if (!load) return "";
  const parts = [
    [load.inserted, "nueva"],
    [load.updated, "cambiada"],
    [load.deleted, "quitada"],
  ] as const;
  const told = parts.filter(([rows]) => rows).map(([rows, word]) => count(rows, word));
  if (told.length > 0) return told.join(", ");
  return parts.some(([rows]) => rows == null) ? "" : "sin cambios";
}

/** The title of the tab. */
export function titleOf({ tone, text }: Pick<Banner, "tone" | "text">): string {
  return `${{ good: "✓", warn: "!", bad: "✕" }[tone]} ${text} · Pulso`;
}

/** What an engineer needs of an error, as text. */
export function errorReport(error: Readonly<Record<string, string | null | undefined>>): string {
  return Object.entries(error)
    .filter(([, value]) => value)
    .map(([name, value]) => `${name}: ${value}`)
    .join("\n");
}
