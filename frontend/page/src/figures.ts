/** How key figures are written: pure functions of what the API tells. Values are texts, so that no digit is lost. */
import words from "../../../pulso_etl/words/words.json";
import type { Comparison, DayMark, FigureDay, FigureStatus } from "../../src";
import { clockTime, day, dayName, UNKNOWN, weekday } from "./format";

const LOCALE = "es-PE";
type Unit = FigureStatus["unit"];
type Exact = Intl.StringNumericLiteral;

const whole = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat(LOCALE, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const currency: Intl.NumberFormatOptions = { style: "currency", currency: "PEN" };
const cents = new Intl.NumberFormat(LOCALE, currency);
const soles = new Intl.NumberFormat(LOCALE, { ...currency, maximumFractionDigits: 0 });
const LARGE_SOLES = 10_000;

export const MARKS: Record<DayMark, string> = words.marks;

/** A value with its unit: "S/ 1,234.50", "1,234", "45.3 %". `short`: large amounts without cents. */
export function amount(value: string | null | undefined, unit: Unit, short = false): string {
  if (value == null) return UNKNOWN;
  if (unit === "PEN") return (short && Math.abs(Number(value)) >= LARGE_SOLES ? soles : cents).format(value as Exact);
  return unit === "percent" ? `${tenth.format(value as Exact)} %` : whole.format(value as Exact);
}

/** A difference with its sign: "+38 (+5.0 %)", "−1.2 puntos"; "igual". */
export function difference({ difference: found, percent }: Comparison, unit: Unit): string {
  if (found == null) return "";
  if (Number(found) === 0) return "igual";
  const size = found.replace("-", "");
  const told = unit === "percent" ? `${tenth.format(size as Exact)} puntos` : amount(size, unit, true);
  const share = percent == null ? "" : ` (${signed(percent, `${tenth.format(percent.replace("-", "") as Exact)} %`)})`;
  return `${signed(found, told)}${share}`;
}

function signed(value: string, told: string): string {
  return `${value.startsWith("-") ? "−" : "+"}${told}`;
}

/** Why a day is not the last word: "el día sigue, hay filas apartadas"; empty for a whole day. */
export function marksOf({ marks }: Pick<FigureDay, "marks">): string {
  return (marks ?? []).map((mark) => MARKS[mark]).join(", ");
}

/** Which part of its day the figure covers: "hoy, hasta las 11:05"; "ayer, día completo". */
export function reachOf({ today, until }: FigureStatus, now: number): string {
  if (!today) return "sin datos todavía";
  const name = dayName(today.day, now);
  const open = today.marks?.some((mark) => mark === "goes_on" || mark === "cut_short");
  return open && until ? `${name}, hasta las ${clockTime(until, Date.parse(until), true)}` : `${name}, día completo`;
}

/** What is compared: "ayer a las 11:00", "ayer a las 11:05 (carga de las 06:10)", "miércoles 18 nov., día completo". */
export function nameOf(other: Comparison, { hour, today }: FigureStatus, now: number, isWeek: boolean): string {
  const name = isWeek ? weekday(other.day) : dayName(other.day, now);
  if (hour != null) return `${name} ${atHour(hour)}`;
  if (other.as_of) return `${name} a las ${heldSince(other.as_of, other.loaded_at)}`;
  const whole = !other.marks?.length && today?.marks?.includes("goes_on");
  return whole ? `${name}, día completo` : name;
}

/** When the table held a value, and the load that had left it: "12:05 (carga de las 06:10)". */
function heldSince(at: string, loaded: string | null | undefined): string {
  const [clock, load] = [at, loaded].map((one) => one && clockTime(one, Date.parse(at), true));
  return loaded ? `${clock} (carga de las ${load})` : `${clock}`;
}

export function atHour(hour: number): string {
  return `a las ${String(hour).padStart(2, "0")}:00`;
}

/** A day of the trend in words: "24 nov.: 760; el día sigue". */
export function describe(one: FigureDay, unit: Unit): string {
  return [`${day(one.day)}: ${amount(one.value, unit)}`, marksOf(one)].filter(Boolean).join("; ");
}

/** The trend in a sentence, for those who do not see it. */
export function trendOf({ days = [], unit }: FigureStatus): string {
  const known = days.filter(({ value }) => value != null).sort((one, other) => Number(one.value) - Number(other.value));
  const [least, most, last] = [known[0], known.at(-1), days.at(-1)];
  if (!least || !most || !last) return "Sin datos.";
  const told = (one: FigureDay) => `${amount(one.value, unit)} (${day(one.day)})`;
  return `${days.length} días hasta el ${day(last.day)}: mínimo ${told(least)}, máximo ${told(most)}.`;
}
