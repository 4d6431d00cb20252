import { useId, useState } from "react";
import type { ETLClient, Extraction } from "../../src";
import { bytes, cost, count, days, duration, instant, UNKNOWN } from "./format";
import { changeOf } from "./state";
import { EXTRACTION, GROUNDS } from "./words";

const [SHOWN, HEIGHT, STEP, BAR] = [20, 64, 16, 11];

interface Props {
  client: ETLClient;
  table: string;
  extractions: Extraction[];
  title: string;
}

/** Rows and durations of the last extractions, as bars and as a table, with older ones by paging. `extractions` are newest first. */
export function History({ client, table, extractions, title }: Props) {
  const [older, setOlder] = useState<Extraction[]>([]);
  const [said, setSaid] = useState("");
  const known = new Set(extractions.map(({ id }) => id));
  const all = [...extractions, ...older.filter(({ id }) => !known.has(id))];
  const last = all.map(({ id }) => id).findLast((id) => id != null);
  const more = () =>
    void client.tableExtractions(table, last ?? undefined).then(
      (found) => {
        setOlder([...older, ...found]);
        setSaid(found.length > 0 ? "" : "No hay cargas más antiguas.");
      },
      () => setSaid("No se pudieron leer; pulse otra vez."),
    );
  if (extractions.length === 0) return <p className="muted">Todavía no hay cargas.</p>;
  const oldestFirst = [...extractions].reverse();
  return (
    <>
      <div className="charts">
        <Bars
          name="Filas leídas"
          extractions={oldestFirst}
          value={({ records }) => records}
          write={(value) => count(value)}
        />
        <Bars name="Duración" extractions={oldestFirst} value={(one) => one.duration_seconds} write={duration} />
      </div>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls, and must do so by keyboard */}
      <section className="scroll scroll--low" aria-label={`Cargas de ${title}`} tabIndex={0}>
        <table className="list">
          <caption className="hidden">Últimas cargas de {title}, la más reciente primero</caption>
          <thead>
            <tr>
              <th scope="col">Fin</th>
              <th scope="col">Resultado</th>
              <th scope="col">Filas leídas</th>
              <th scope="col">Cambió</th>
              <th scope="col">Duración</th>
              <th scope="col">Costo</th>
              <th scope="col">Evitado</th>
              <th scope="col">Días</th>
              <th scope="col">Por qué se leyeron</th>
            </tr>
          </thead>
          <tbody>
            {all.map((one) => (
              <tr key={`${one.run_id} ${one.attempt}`}>
                <th scope="row">
                  {one.run_url ? (
                    <a href={one.run_url} rel="noreferrer" target="_blank">
                      {instant(one.finished_at)}
                    </a>
                  ) : (
                    instant(one.finished_at)
                  )}
                </th>
                <td>{EXTRACTION[one.status].text}</td>
                <td>{count(one.records)}</td>
                <td>{changeOf(one) || "—"}</td>
                <td>{duration(one.duration_seconds)}</td>
                <td>{cost(one.estimated_cost_usd)}</td>
                <td>{bytes(one.bytes_avoided)}</td>
                <td>{days(one.partitions)}</td>
                <td>{reasonsOf(one)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </section>
      <p className="pager">
        <button type="button" className="button button--small" onClick={more}>
          Más antiguas
        </button>
        <span role="status">{said}</span>
      </p>
    </>
  );
}

/** Why the days of an attempt were read: one reason for all, or one for each range; a dash if that is not known. */
export function reasonsOf({ reasons }: Pick<Extraction, "reasons">): string {
  if (!reasons?.length) return UNKNOWN;
  const grounds = new Set(reasons.map(({ ground }) => GROUNDS[ground]));
  if (grounds.size === 1) return [...grounds].join();
  return reasons
    .map(({ start, end, ground }) => `${days(start === end ? start : `${start}..${end}`)}: ${GROUNDS[ground]}`)
    .join("; ");
}

interface BarsProps {
  name: string;
  extractions: Extraction[];
  value: (extraction: Extraction) => number | null;
  write: (value: number | null) => string;
}

function Bars({ name, extractions, value, write }: BarsProps) {
  const hatch = useId();
  const largest = Math.max(...extractions.map((one) => value(one) ?? 0));
  const last = extractions.at(-1);
  const summary = `${name} de las últimas ${extractions.length} cargas: máximo ${write(largest)}, última ${write(last ? value(last) : null)}`;
  return (
    <figure>
      <figcaption>
        {name} <span className="muted">máx. {write(largest)}</span>
      </figcaption>
      <svg
        viewBox={`0 0 ${SHOWN * STEP} ${HEIGHT}`}
        role="img"
        aria-label={`${summary}. La tabla siguiente tiene las cifras.`}
      >
        <defs>
          <pattern id={hatch} width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
            <rect width="2.5" height="5" className="bar--failed" />
          </pattern>
        </defs>
        {extractions.map((one, place) => {
          // A cross is above the bars of failed attempts.
          const height = largest > 0 ? Math.max(2, ((value(one) ?? 0) / largest) * (HEIGHT - 14)) : 2;
          const failed = one.status === "failed";
          // The newest attempt is at the right end, even if there are few.
          const x = (SHOWN - extractions.length + place) * STEP + (STEP - BAR) / 2;
          const y = HEIGHT - height;
          return (
            <g key={`${one.run_id} ${one.attempt}`}>
              <title>{`${instant(one.finished_at)}: ${write(value(one))}${failed ? " (falló)" : ""}`}</title>
              <rect
                {...{ x, y, width: BAR, height, rx: 2 }}
                className={failed ? undefined : "bar"}
                fill={failed ? `url(#${hatch})` : undefined}
              />
              {failed && <path className="bar__cross" d={`M${x + 2} ${y - 11}l7 7m0-7l-7 7`} />}
            </g>
          );
        })}
      </svg>
    </figure>
  );
}
