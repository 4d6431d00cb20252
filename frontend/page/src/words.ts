/** What the API tells, in the words of the people who read it. */
import type { ETLError, Extraction, Status, TableRun, TableStatus } from "../../src";
import type { DayState } from "../../src/schema";
import { count } from "./format";
import type { IconName } from "./Icon";

type Tone = "good" | "warn" | "bad" | "calm" | "busy";

export interface Label {
  text: string;
  tone: Tone;
  icon: IconName;
}

const TITLES: Record<string, { title: string; about: string }> = {
  dashboard_data: { title: "Tablero de cobranzas", about: "Indicadores por día, archivo, cartera y servicio" },
  evolution_data: { title: "Evolución diaria", about: "Cobertura, contacto, cierre y recupero por día" },
  assignment_data: { title: "Asignación mensual", about: "Cuentas y deuda asignadas por mes" },
  operation_data: { title: "Gestiones por hora", about: "Gestiones y contactos por hora y canal" },
  productivity_data: { title: "Productividad de agentes", about: "Gestiones y promesas de pago por agente" },
};

/** A table of one's own has no title here: its name stands for itself. */
export function tableTitle(table: string): string {
  return TITLES[table]?.title ?? table;
}

export function tableAbout({ table, description }: TableStatus): string {
  return TITLES[table]?.about ?? description;
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

/** What went wrong, in plain words, and what to do about it. */
export interface Explanation {
  title: string;
  what: string;
  todo: string;
}

const ENGINEER = "avise al ingeniero de datos";
const AS_IT_WAS = "No se cargó nada: la tabla quedó como estaba.";

/** Causes by what the technical text says; the first that fits. The words are those of the alerts. */
const CAUSES: [RegExp, Explanation][] = [
  [
    /would bill more than the cap/,
    {
      title: "Consulta demasiado cara",
      what: "La consulta leería más datos que el tope permitido y BigQuery la rechazó sin cobrarla. No se cargó nada.",
      todo: `${ENGINEER}: hay que cargar menos días a la vez o subir el tope.`,
    },
  ],
  [
    /budget is spent/,
    {
      title: "Presupuesto de BigQuery agotado",
      what: "Las consultas gastaron todo el presupuesto del día. Hasta la medianoche solo se actualiza lo que se pide aunque esté fresco.",
      todo: `${ENGINEER}: decida si se sube el presupuesto o se espera al próximo día.`,
    },
  ],
  [
    /had its query stopped|its time-out is|[Ee]xceeded maximum runtime/,
    {
      title: "La carga tardó demasiado",
      what: "La carga pasó su tiempo máximo y se detuvo. La tabla quedó como estaba.",
      todo: `por ahora nada; Pulso lo intenta de nuevo. Si se repite, ${ENGINEER}.`,
    },
  ],
  [
    /BigQuery does not know the table/,
    {
      title: "BigQuery no encuentra la tabla de origen",
      what: `La tabla o vista de la que salen los datos no existe o cambió de nombre. ${AS_IT_WAS}`,
      todo: `${ENGINEER}: hay que corregir el origen.`,
    },
  ],
  [
    /BigQuery refuses|BigQuery: (no usable|the|both) .*credentials|BigQuery: both/i,
    {
      title: "BigQuery no da acceso",
      what: `BigQuery no aceptó la cuenta con la que Pulso lee los datos. ${AS_IT_WAS}`,
      todo: `${ENGINEER}: hay que revisar los permisos o la clave de la cuenta.`,
    },
  ],
  [
    /has no quota left/,
    {
      title: "Cuota de BigQuery agotada",
      what: `BigQuery no acepta más consultas hasta que su cuota se renueve. ${AS_IT_WAS}`,
      todo: `espere a que se renueve; si es urgente, ${ENGINEER}.`,
    },
  ],
  [
    /BigQuery is failing for now|BigQuery gave \d+ of/,
    {
      title: "BigQuery no responde",
      what: "BigQuery no respondió y los datos no se actualizaron. Lo que ya estaba cargado sigue ahí, pero puede estar atrasado.",
      todo: `por ahora nada; Pulso lo intenta de nuevo. Si sigue así en una hora, ${ENGINEER}.`,
    },
  ],
  [
    /refused to delete|rows would be left of/,
    {
      title: "Faltan muchas filas en el origen",
      what: "BigQuery trae muchas menos filas que las que ya hay en la tabla. Por seguridad no se borró nada.",
      todo: `${ENGINEER}: si esas filas de verdad ya no existen, hay que repetir la carga con --allow-shrink.`,
    },
  ],
  [
    /PostgreSQL( is away|: another writer|: the statement| has no | gave the load up| ended the | takes no writes| does not (answer|let us in))/,
    {
      title: "PostgreSQL no está disponible",
      what: "La base de datos del tablero no aceptó la carga y los datos no se actualizaron. El tablero puede no abrir o estar atrasado.",
      todo: `si el tablero no abre o en media hora sigue así, ${ENGINEER}.`,
    },
  ],
  [
    /does not fit the declaration|refuses (a row|what is beyond)|rows of (one|the) primary key|quarantine|outside of what was asked|is not as declared/,
    {
      title: "Datos de origen inválidos",
      what:
        "BigQuery entregó datos que no encajan en la tabla (una columna que falta, un tipo distinto, una clave vacía o repetida). " +
        AS_IT_WAS,
      todo: `${ENGINEER}: hay que corregir el origen. Repetir la carga no lo arregla.`,
    },
  ],
  [
    /process or its server session was killed|its run had ended/,
    {
      title: "La carga se interrumpió",
      what: "El proceso de la carga se detuvo a la mitad. La tabla quedó como estaba.",
      todo: `por ahora nada; Pulso la retoma. Si se repite, ${ENGINEER}.`,
    },
  ],
];

const UNCLEAR: Explanation = {
  title: "Falló la actualización",
  what: "La carga terminó con un error. La tabla quedó como estaba.",
  todo: `inténtelo de nuevo. Si se repite, ${ENGINEER}.`,
};

/** Why a load failed. */
export function explainFailure(technical: string): Explanation {
  return CAUSES.find(([pattern]) => pattern.test(technical))?.[1] ?? UNCLEAR;
}

/** Why the API did not do what was asked. */
export function explainRefusal(error: ETLError): Explanation {
  const what = "No se pidió ninguna actualización.";
  const seconds = error.retryAfter === null ? "en un momento" : `en ${count(error.retryAfter, "segundo")}`;
  switch (error.status) {
    case 0:
      return {
        title: "Sin conexión con Pulso",
        what: "El servidor no respondió.",
        todo: "revise su red; la página lo intenta de nuevo sola.",
      };
    case 401:
      return { title: "La clave no es válida", what, todo: "escriba otra clave." };
    case 403:
      return {
        title: "Sin permiso",
        what: `Su clave no permite esto. ${what}`,
        todo: "pida una clave que permita actualizar.",
      };
    case 429:
      if (/budget is spent/.test(error.message)) return explainFailure(error.message);
      return { title: "Demasiadas actualizaciones seguidas", what, todo: `inténtelo de nuevo ${seconds}.` };
    case 502:
    case 503:
    case 504:
      return /PostgreSQL/.test(error.message)
        ? {
            title: "PostgreSQL no está disponible",
            what: "La base de datos del tablero no responde.",
            todo: `inténtelo de nuevo ${seconds}.`,
          }
        : {
            title: "Dagster no responde",
            what: "El programa que lanza las cargas no responde.",
            todo: `inténtelo de nuevo ${seconds}; si sigue así, ${ENGINEER}.`,
          };
    default:
      return { title: "Pulso no aceptó el pedido", what, todo: `${ENGINEER}.` };
  }
}
