/** Writes numbers and instants: in es-PE, in the time zone that the API tells. An unknown value is a dash. */

import words from "../../../pulso_etl/words/words.json";

const LOCALE = "es-PE";
const PLACES: Record<string, string> = words.places;
export const UNKNOWN = "—";

const whole = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 1 });
const dollars = new Intl.NumberFormat(LOCALE, { minimumFractionDigits: 2, maximumFractionDigits: 4 });
const relative = new Intl.RelativeTimeFormat(LOCALE);
const clock: Intl.DateTimeFormatOptions = {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
  hourCycle: "h23",
};
let dayAndTime = new Intl.DateTimeFormat(LOCALE, clock);
let dayOf = isoDay(undefined);
const dayOnly = new Intl.DateTimeFormat(LOCALE, { timeZone: "UTC", day: "numeric", month: "short" });
const weekdayAndDay = new Intl.DateTimeFormat(LOCALE, {
  timeZone: "UTC",
  weekday: "long",
  day: "numeric",
  month: "short",
});
const monthOnly = new Intl.DateTimeFormat(LOCALE, { timeZone: "UTC", month: "long" });

function isoDay(timeZone: string | undefined): Intl.DateTimeFormat {
  return new Intl.DateTimeFormat("en-CA", { timeZone, year: "numeric", month: "2-digit", day: "2-digit" });
}

/** A count, with its noun if one is given: `count(1, "fila")` is "1 fila". */
export function count(value: number | null | undefined, noun?: string): string {
  if (value === null || value === undefined) return UNKNOWN;
  return noun ? `${whole.format(value)} ${value === 1 ? noun : `${noun}s`}` : whole.format(value);
}

/** From now on instants are written in that time zone. */
export function writeTimesIn(timezone: string): void {
  if (dayAndTime.resolvedOptions().timeZone !== timezone) {
    dayAndTime = new Intl.DateTimeFormat(LOCALE, { ...clock, timeZone: timezone });
    dayOf = isoDay(timezone);
  }
}

/** Whose time a zone is: "de Lima", "de Bogotá"; "UTC". */
export function placeOf(timezone: string): string {
  if (!timezone.includes("/")) return timezone;
  const city = timezone.slice(timezone.lastIndexOf("/") + 1).replaceAll("_", " ");
  return `de ${PLACES[city] ?? city}`;
}

/** An instant: "25 nov., 10:04". */
export function instant(at: string | null | undefined): string {
  return at ? dayAndTime.format(new Date(at)) : UNKNOWN;
}

/** An instant as people say it: "hoy 11:00", "ayer 20:00", "mañana 02:00", else "22 nov., 10:04". `bare`: today's without "hoy". */
export function clockTime(at: string, now: number, bare = false): string {
  const [then, today] = [dayOf.format(new Date(at)), dayOf.format(new Date(now))];
  const days = (Date.parse(then) - Date.parse(today)) / 86_400_000;
  const name = { "-1": "ayer", "0": bare ? "" : "hoy", "1": "mañana" }[String(days)];
  const time = dayAndTime.formatToParts(new Date(at)).filter(({ type }) => type === "hour" || type === "minute");
  return name === undefined ? instant(at) : `${name} ${time.map(({ value }) => value).join(":")}`.trim();
}

/** A day, given as `2026-11-25`: "25 nov." */
export function day(iso: string): string {
  return dayOnly.format(new Date(`${iso}T00:00:00Z`));
}

/** A day with its weekday: "miércoles 25 nov." */
export function weekday(iso: string): string {
  return weekdayAndDay.format(new Date(`${iso}T00:00:00Z`)).replace(",", "");
}

/** The day of an instant, as `2026-11-25`. */
export function today(now: number): string {
  return dayOf.format(now);
}

/** The day so many days before, as `2026-11-25`. */
export function earlier(iso: string, days: number): string {
  return new Date(Date.parse(iso) - days * 86_400_000).toISOString().slice(0, 10);
}

/** A day as people say it: "hoy", "ayer", else "22 nov." */
export function dayName(iso: string, now: number): string {
  return { [today(now)]: "hoy", [earlier(today(now), 1)]: "ayer" }[iso] ?? day(iso);
}

export function month(iso: string): string {
  return monthOnly.format(new Date(`${iso}T00:00:00Z`));
}

/** Partitions, given as `2026-11-19..2026-11-25` or one day: "del 19 nov. al 25 nov." */
export function days(partitions: string | null | undefined): string {
  if (!partitions) return "";
  const [start = "", end] = partitions.split("..");
  return end ? `del ${day(start)} al ${day(end)}` : day(start);
}

/** How far an instant is from now: "hace 12 minutos", "en 2 horas"; "ahora" within half a minute. */
export function distance(at: string | null | undefined, now: number): string {
  if (!at) return UNKNOWN;
  const seconds = (Date.parse(at) - now) / 1000;
  const size = Math.abs(seconds);
  if (size < 30) return "ahora";
  if (size < 5400) return about(Math.trunc(seconds / 60) || Math.sign(seconds), "minute");
  if (size < 129_600) return about(Math.round(seconds / 3600), "hour");
  return about(Math.round(seconds / 86_400), "day");
}

function about(value: number, unit: Intl.RelativeTimeFormatUnit): string {
  return relative.format(value, unit).replace("dentro de", "en");
}

/** A span in its two largest units: "2 h 5 min", "3 min 4 s", "2.4 s". */
export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return UNKNOWN;
  if (seconds < 60) return `${tenth.format(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** US dollars, to the hundredth of a cent. */
export function cost(usd: number | null | undefined): string {
  if (usd === null || usd === undefined) return UNKNOWN;
  return usd > 0 && usd < 0.0001 ? "menos de US$ 0.0001" : `US$ ${dollars.format(usd)}`;
}

export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return UNKNOWN;
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = value < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(value) / 3));
  return `${tenth.format(value / 1000 ** power)} ${units[power]}`;
}
