/** The day in America/Lima of an instant, as Dagster names its partition: `2026-11-25`. */
export function limaDay(at: Date): string {
  return new Intl.DateTimeFormat("en-CA", { timeZone: "America/Lima", dateStyle: "short" }).format(at);
}

/** The first and the last of the trailing days up to today in America/Lima. */
export function trailingDays(days: number, now: Date): { start: string; end: string } {
  const end = limaDay(now);
  const start = new Date(`${end}T00:00:00Z`);
  start.setUTCDate(start.getUTCDate() - (days - 1));
  return { start: start.toISOString().slice(0, 10), end };
}
