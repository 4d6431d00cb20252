import { useEffect, useRef } from "react";
import type { TableDetail } from "../../src";
import type { PartitionStatus } from "../../src/types";
import { count, day, instant, month } from "./format";
import { CHECKS, DAYS, type Titles } from "./words";

/** The last 30 partitions of each table, a row for each. */
export function Calendar({ titles, details }: { titles: Titles; details: Record<string, TableDetail> }) {
  const tables = Object.keys(titles);
  const scrolled = useRef<HTMLElement>(null);
  const days = tables.map((table) => details[table]?.partitions ?? []).find((found) => found.length > 0) ?? [];
  const loaded = days.length > 0;
  useEffect(() => {
    // Today is at the right end.
    if (loaded && scrolled.current) scrolled.current.scrollLeft = scrolled.current.scrollWidth;
  }, [loaded]);
  return (
    <section aria-labelledby="calendario">
      <h2 id="calendario">Últimos 30 días</h2>
      <ul className="legend" aria-label="Leyenda">
        {Object.entries(DAYS).map(([state, { text, mark }]) => (
          <li key={state}>
            <span className={`day day--${state}`} aria-hidden="true">
              {mark}
            </span>
            {text}
          </li>
        ))}
        {(["failed", "unverified"] as const).map((check) => (
          <li key={check}>
            <span className={`day day--loaded day--check-${check}`} aria-hidden="true">
              {DAYS.loaded.mark}
            </span>
            cargado; {CHECKS[check]}
          </li>
        ))}
      </ul>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls, and must do so by keyboard */}
      <section className="panel scroll" aria-label="Estado de cada día" tabIndex={0} ref={scrolled}>
        {loaded ? (
          <table className="calendar">
            <caption className="hidden">Estado de cada día de cada tabla; el último es hoy</caption>
            <thead>
              <tr>
                <td />
                {months(days).map(({ name, span }) => (
                  <th key={name} scope="colgroup" colSpan={span} className="month">
                    <span>{name}</span>
                  </th>
                ))}
              </tr>
              <tr>
                <th scope="col">Tabla</th>
                {days.map(({ day: iso }) => (
                  <th key={iso} scope="col" aria-label={day(iso)}>
                    {Number(iso.slice(8))}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {tables.map((table) => (
                <tr key={table}>
                  <th scope="row">{titles[table]}</th>
                  {(details[table]?.partitions ?? []).map((partition) => (
                    <Day key={partition.day} partition={partition} />
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        ) : (
          <p>Cargando…</p>
        )}
      </section>
    </section>
  );
}

function Day({ partition }: { partition: PartitionStatus }) {
  const { text, mark } = DAYS[partition.state];
  const troubled = partition.state === "loaded" && partition.check !== "ok" && partition.check;
  return (
    <td title={describeDay(partition)}>
      <span className={`day day--${partition.state}${troubled ? ` day--check-${troubled}` : ""}`} aria-hidden="true">
        {mark}
      </span>
      <span className="hidden">{troubled ? `${text}; ${CHECKS[troubled]}` : text}</span>
    </td>
  );
}

/** A day in a sentence: "25 nov.: cargado, 170 filas, 25 nov., 10:04; la última revisión falló, 25 nov., 12:04". */
export function describeDay({ day: iso, state, rows, loaded_at, check, checked_at }: PartitionStatus): string {
  const loaded = [DAYS[state].text, rows == null ? null : count(rows, "fila"), loaded_at && instant(loaded_at)];
  const checked = state === "loaded" && check ? [CHECKS[check], checked_at && instant(checked_at)] : [];
  const told = [loaded, checked].map((parts) => parts.filter(Boolean).join(", ")).filter(Boolean);
  return `${day(iso)}: ${told.join("; ")}`;
}

function months(days: PartitionStatus[]): { name: string; span: number }[] {
  const found: { name: string; span: number }[] = [];
  for (const { day: iso } of days) {
    const name = month(iso);
    const last = found.at(-1);
    if (last?.name === name) last.span += 1;
    else found.push({ name, span: 1 });
  }
  return found;
}
