import type { Extraction } from "../../src";
import { Badge } from "./Badge";
import { clockTime, count, days, distance } from "./format";
import { changeOf } from "./state";
import { EXTRACTION, type Titles } from "./words";

interface Props {
  extractions: Extraction[];
  titles: Titles;
  now: number;
}

/** The last extractions of all tables, newest first. */
export function Activity({ extractions, titles, now }: Props) {
  return (
    <section aria-labelledby="actividad">
      <h2 id="actividad">Actividad reciente</h2>
      {extractions.length === 0 ? (
        <p className="panel muted">Todavía no hay cargas.</p>
      ) : (
        <ol className="panel activity">
          {extractions.map((one) => (
            <li key={`${one.table} ${one.run_id} ${one.attempt}`}>
              <Badge label={EXTRACTION[one.status]} />
              <span className="activity__table">{titles[one.table] ?? one.table}</span>
              <span>{one.failure ? one.failure.title : changeOf(one) || `${count(one.records, "fila")} leídas`}</span>
              <span className="muted">{days(one.partitions)}</span>
              <time dateTime={one.finished_at} title={distance(one.finished_at, now)} className="muted">
                {clockTime(one.finished_at, now)}
              </time>
            </li>
          ))}
        </ol>
      )}
    </section>
  );
}
