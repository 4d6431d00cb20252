/** What the API tells, in the words of the people who read it. */
import words from "../../../pulso_etl/words/words.json";
import type { ETLError, Extraction, Failure, Status, TableRun, TableStatus } from "../../src";
import type { Cause, DayState } from "../../src/schema";
import { count } from "./format";
import type { IconName } from "./Icon";

type Tone = "good" | "warn" | "bad" | "calm" | "busy";

export interface Label {
  text: string;
  tone: Tone;
  icon: IconName;
}

const ENGINEER = "avise al ingeniero de datos";

/** By table, what its readers call it. */
export type Titles = Record<string, string>;

export function titlesOf(tables: readonly TableStatus[]): Titles {
  return Object.fromEntries(tables.map(({ table, title }) => [table, title]));
}

export const FRESHNESS: Record<TableStatus["freshness"], Label> = {
  fresh: { text: "Fresco", tone: "good", icon: "check" },
  due: { text: "Por vencer", tone: "warn", icon: "clock" },
  stale: { text: "Vencido", tone: "bad", icon: "alert" },
  never: { text: "Sin datos", tone: "calm", icon: "empty" },
};

export const PROGRESS: Record<TableRun["state"], Label> = {
  queued: { text: "En cola", tone: "busy", icon: "clock" },
  running: { text: "En curso", tone: "busy", icon: "refresh" },
  success: { text: "Actualizado", tone: "good", icon: "check" },
  skipped: { text: "Ya estaba fresca", tone: "calm", icon: "check" },
  failed: { text: "Falló", tone: "bad", icon: "cross" },
  canceled: { text: "Cancelado", tone: "warn", icon: "cross" },
};

export const EXTRACTION: Record<Extraction["status"], Label> = {
  success: { text: "Cargado", tone: "good", icon: "check" },
  failed: { text: "Falló", tone: "bad", icon: "cross" },
  running: PROGRESS.running,
  never: FRESHNESS.never,
};

export const DAYS: Record<DayState, { text: string; plural: string; mark: string }> = {
  loaded: { text: "cargado", plural: "cargados", mark: "✓" },
  failed: { text: "fallido", plural: "fallidos", mark: "✕" },
  missing: { text: "sin datos", plural: "sin datos", mark: "·" },
};

/** The state of everything in one sentence, and a second one that says why. */
export function overall(status: Status): Label & { why: string } {
  const failed = status.tables.filter((table) => table.status === "failed").length;
  const stale = status.tables.filter((table) => table.freshness === "stale").length;
  const never = status.tables.filter((table) => table.freshness === "never").length;
  const troubles = [
    failed && `${count(failed, "tabla")} con error`,
    stale && (stale === 1 ? "1 tabla vencida" : `${stale} tablas vencidas`),
    never && `${count(never, "tabla")} sin datos`,
  ].filter(Boolean);
  const why = troubles.join(", ");
  if (!status.dagster) {
    const text = "Dagster no responde: por ahora no se puede actualizar";
    return { text, tone: "bad", icon: "alert", why: "Las cifras que ya estaban cargadas siguen ahí." };
  }
  if (failed || stale)
    return { text: "Hay datos que requieren atención", tone: failed ? "bad" : "warn", icon: "alert", why };
  if (never) return { text: "Faltan datos por cargar", tone: "warn", icon: "empty", why };
  return {
    text: "Los datos están al día",
    tone: "good",
    icon: "check",
    why: `${count(status.total_tables, "tabla")} en orden`,
  };
}

/** What went wrong, in plain words: what happened, what happens next by itself, and what to do. */
export interface Explanation {
  title: string;
  what: string;
  next: string;
  todo: string;
}

/** The words for each cause, the same as those of the alerts. */
export const CAUSES: Record<Cause, Explanation> = words.causes;

/** Why something failed. */
export function explain({ cause }: Failure): Explanation {
  return CAUSES[cause];
}

const UNREACHABLE: Explanation = {
  title: "Sin conexión con Pulso",
  what: "El servidor no respondió.",
  next: "la página lo intenta de nuevo sola.",
  todo: "revise su red.",
};

/** Why the API did not do what was asked. */
export function explainRefusal({ failure, status, retryAfter }: ETLError): Explanation {
  const found = failure ? CAUSES[failure.cause] : status === 0 ? UNREACHABLE : CAUSES.launcher_unavailable;
  if (!failure?.retryable || retryAfter === null) return found;
  return { ...found, todo: `inténtelo de nuevo en ${count(retryAfter, "segundo")}. Si sigue así, ${ENGINEER}.` };
}
