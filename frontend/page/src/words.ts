/** What the API tells, in the words of the people who read it. */
import words from "../../../pulso_etl/words/words.json";
import type { Condition, ETLError, Extraction, Failure, TableRun, TableStatus } from "../../src";
import type { Cause, DayCheck, DayState, Ground } from "../../src/schema";
import { clockTime } from "./format";
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

export const CONDITIONS: Record<Condition, Label> = {
  failed: { text: "Falló", tone: "bad", icon: "cross" },
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
  never: CONDITIONS.never,
};

export const DAYS: Record<DayState, { text: string; plural: string; mark: string }> = {
  loaded: { text: "cargado", plural: "cargados", mark: "✓" },
  failed: { text: "falló y nunca se cargó", plural: "fallidos", mark: "✕" },
  missing: { text: "sin datos", plural: "sin datos", mark: "·" },
};

/** How the last comparison of a day with BigQuery ended. */
export const CHECKS: Record<DayCheck, string> = {
  ok: "revisado",
  failed: "la última revisión falló",
  unverified: "sin revisar desde entonces",
};

/** Why a day was read. */
export const GROUNDS: Record<Ground, string> = words.grounds;

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
  next: "",
  todo: "revise su red.",
};
const NOT_DONE = "nada: el pedido no se hizo, y la página no lo repite.";
/** A wait that is over before people have read of it. */
const SOON_SECONDS = 30;

/** Why the API did not do what was asked. `now` is the instant of the answer. */
export function explainRefusal({ failure, status, retryAfter }: ETLError, now = Date.now()): Explanation {
  const found = failure ? CAUSES[failure.cause] : status === 0 ? UNREACHABLE : CAUSES.launcher_unavailable;
  if (status === 0) return { ...found, next: NOT_DONE, todo: `revise su red y pulse el botón otra vez.` };
  if (!failure?.retryable) return found;
  const when =
    retryAfter === null || retryAfter <= SOON_SECONDS
      ? "en un momento"
      : `a partir de ${clockTime(new Date(now + retryAfter * 1000).toISOString(), now)}`;
  return { ...found, next: NOT_DONE, todo: `inténtelo de nuevo ${when}. Si sigue así, ${ENGINEER}.` };
}

/** Why the page shows nothing yet. It asks again by itself if that may help. */
export function explainNothing(error: ETLError, everySeconds: number): Explanation {
  const { failure, status, passes } = error;
  const found = failure ? CAUSES[failure.cause] : status === 0 ? UNREACHABLE : CAUSES.launcher_unavailable;
  const next = passes
    ? `la página vuelve a preguntar sola cada ${everySeconds} segundos.`
    : "nada: la página no vuelve a preguntar sola.";
  const todo = status === 0 ? "revise su red." : passes ? `por ahora nada. Si sigue así, ${ENGINEER}.` : found.todo;
  return { ...found, next, todo };
}
