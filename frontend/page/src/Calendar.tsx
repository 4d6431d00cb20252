import { type KeyboardEvent, memo, useEffect, useRef, useState } from "react";
import type { ETLClient, Status } from "../../src";
import type { PartitionStatus } from "../../src/types";
import { count, day, instant, month } from "./format";
import { useDetails } from "./live";
import { CHECKS, DAYS, type Titles } from "./words";

type Pages = Record<string, PartitionStatus[]>;
const NONE: PartitionStatus[] = [];

interface Chosen {
  table: string;
  day: string;
}

interface Props {
  client: ETLClient;
  status: Status;
  titles: Titles;
}

/** The partitions of each table, a row for each: the last 30 days, and older ones by paging. */
export function Calendar({ client, status, titles }: Props) {
  const details = useDetails(client, status.tables);
  const tables = Object.keys(titles);
  const newest: Pages = Object.fromEntries(tables.map((table) => [table, details[table]?.partitions ?? NONE]));
  const { pages, older, newer, trouble } = usePages(client, tables, newest);
  const [chosen, setChosen] = useState<Chosen | null>(null);
  const scrolled = useRef<HTMLElement>(null);
  const days = tables.map((table) => pages[table] ?? []).find((found) => found.length > 0) ?? [];
  const loaded = days.length > 0;
  useEffect(() => {
    // Today stands at the right end.
    if (loaded && scrolled.current) scrolled.current.scrollLeft = scrolled.current.scrollWidth;
  }, [loaded]);
  const told = chosen && pages[chosen.table]?.find((partition) => partition.day === chosen.day);
  return (
    <section aria-labelledby="calendario">
      <h2 id="calendario">{newer ? `30 días hasta el ${day(days.at(-1)?.day ?? "")}` : "Últimos 30 días"}</h2>
      <Legend />
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls, and must do so by keyboard */}
      <section className="panel scroll" aria-label="Estado de cada día" tabIndex={0} ref={scrolled}>
        {loaded ? (
          <table className="calendar">
            <caption className="hidden">
              Estado de cada día de cada tabla. Las flechas pasan de un día a otro; debajo se lee el día elegido.
            </caption>
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
                <Days
                  key={table}
                  {...{ table }}
                  title={titles[table] ?? table}
                  partitions={pages[table] ?? NONE}
                  chosen={chosen?.table === table ? chosen.day : null}
                  onChoose={setChosen}
                />
              ))}
            </tbody>
          </table>
        ) : (
          <p>Cargando…</p>
        )}
      </section>
      <div className="pager">
        <button type="button" className="button button--small" onClick={older}>
          ‹ Días anteriores
        </button>
        {newer && (
          <button type="button" className="button button--small" onClick={newer}>
            Días siguientes ›
          </button>
        )}
        <p role="status">
          {trouble ??
            (told && chosen ? `${titles[chosen.table]}, ${describeDay(told)}` : "Elija un día para ver sus filas.")}
        </p>
      </div>
    </section>
  );
}

/** The pages of days: the newest follows the events, older ones are asked for. */
function usePages(client: ETLClient, tables: string[], newest: Pages) {
  const [earlier, setEarlier] = useState<Pages[]>([]);
  const [trouble, setTrouble] = useState<string | null>(null);
  const pages = earlier.at(-1) ?? newest;
  const first = Object.values(pages).find((found) => found.length > 0)?.[0]?.day;
  const older = () => {
    if (!first) return;
    Promise.all(tables.map(async (table) => [table, await client.tableDays(table, first)] as const)).then(
      (found) => {
        setTrouble(null);
        setEarlier([...earlier, Object.fromEntries(found)]);
      },
      () => setTrouble("No se pudieron leer esos días; pulse otra vez."),
    );
  };
  return { pages, older, newer: earlier.length > 0 ? () => setEarlier(earlier.slice(0, -1)) : null, trouble };
}

/** The arrows, Home and End pass from one day of the row to another. */
function walk(event: KeyboardEvent<HTMLTableRowElement>): void {
  const cells = [...event.currentTarget.querySelectorAll("button")];
  const place = cells.indexOf(event.target as HTMLButtonElement);
  const to = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: cells.length - 1 }[event.key];
  if (to === undefined || place < 0) return;
  event.preventDefault();
  cells[to]?.focus();
}

interface DaysProps {
  table: string;
  title: string;
  partitions: PartitionStatus[];
  /** The chosen day, if it is one of this table. */
  chosen: string | null;
  onChoose: (chosen: Chosen) => void;
}

/** The days of a table. It is a row that does not change as long as they do not. */
const Days = memo(function Days({ table, title, partitions, chosen, onChoose }: DaysProps) {
  return (
    <tr onKeyDown={walk}>
      <th scope="row">{title}</th>
      {partitions.map((partition, place, all) => (
        <Day
          key={partition.day}
          partition={partition}
          reachable={chosen === null ? place === all.length - 1 : chosen === partition.day}
          onChoose={() => onChoose({ table, day: partition.day })}
        />
      ))}
    </tr>
  );
});

interface DayProps {
  partition: PartitionStatus;
  /** Whether the tabulator key stops here: at one day of each row. */
  reachable: boolean;
  onChoose: () => void;
}

function Day({ partition, reachable, onChoose }: DayProps) {
  const { mark } = DAYS[partition.state];
  const troubled = partition.state === "loaded" && partition.check !== "ok" && partition.check;
  const marks = [
    `day--${partition.state}`,
    troubled && `day--check-${troubled}`,
    partition.unusual && "day--unusual",
    partition.gap && "day--gap",
  ];
  const told = describeDay(partition);
  return (
    <td title={told}>
      <button
        type="button"
        className={`day ${marks.filter(Boolean).join(" ")}`}
        aria-label={told}
        tabIndex={reachable ? 0 : -1}
        onFocus={onChoose}
        onClick={onChoose}
      >
        {partition.unusual ? "≠" : partition.gap ? "!" : mark}
      </button>
    </td>
  );
}

function Legend() {
  const marks: [string, string, string][] = [
    ...Object.entries(DAYS).map(([state, { text, mark }]): [string, string, string] => [`day--${state}`, mark, text]),
    ["day--loaded day--check-failed", DAYS.loaded.mark, `cargado; ${CHECKS.failed}`],
    ["day--loaded day--check-unverified", DAYS.loaded.mark, `cargado; ${CHECKS.unverified}`],
    ["day--loaded day--unusual", "≠", "filas fuera de lo usual"],
    ["day--missing day--gap", "!", "falta entre días cargados"],
  ];
  return (
    <ul className="legend" aria-label="Leyenda">
      {marks.map(([className, mark, text]) => (
        <li key={className}>
          <span className={`day ${className}`} aria-hidden="true">
            {mark}
          </span>
          {text}
        </li>
      ))}
    </ul>
  );
}

/** A day in a sentence: "25 nov.: cargado, 49 filas (lo usual: 100), 25 nov., 10:04; la última revisión falló, 25 nov., 12:04". */
export function describeDay({ day: iso, state, rows, usual_rows, loaded_at, ...more }: PartitionStatus): string {
  const usual = usual_rows ? ` (lo usual: ${count(usual_rows)})` : "";
  const loaded = [
    more.gap ? "falta entre días cargados" : DAYS[state].text,
    rows == null ? null : `${count(rows, "fila")}${usual}`,
    loaded_at && instant(loaded_at),
  ];
  const checked =
    state === "loaded" && more.check ? [CHECKS[more.check], more.checked_at && instant(more.checked_at)] : [];
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
