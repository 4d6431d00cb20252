import { useEffect, useId, useRef } from "react";
import { type Refresh, type TableDetail, type TableRun, type TableStatus, useETLRefresh } from "../../src";
import { Badge } from "./Badge";
import { Explained } from "./Explained";
import { bytes, cost, count, days, distance, duration, instant } from "./format";
import { History } from "./History";
import { Icon } from "./Icon";
import { explain, explainRefusal, FRESHNESS, PROGRESS } from "./words";

interface Props {
  table: TableStatus;
  run: TableRun | null;
  detail: TableDetail | undefined;
  now: number;
  mayRefresh: boolean;
  dagster: boolean;
  force: boolean;
  onProgress: (refresh: Refresh | null) => void;
}

export function TableCard({ table, run, detail, now, mayRefresh, dagster, force, onProgress }: Props) {
  const { triggerRefresh, isRefreshing, progress, error } = useETLRefresh();
  const tell = useRef(onProgress);
  tell.current = onProgress;
  useEffect(() => tell.current(progress), [progress]);
  const id = useId();
  const { title, subtitle } = table;
  const underWay = run?.state === "queued" || run?.state === "running";
  const reason = underWay
    ? "Ya se está actualizando"
    : isRefreshing
      ? "Pidiendo…"
      : dagster
        ? null
        : "Dagster no responde";
  const refused = error && !error.refresh ? error : null;
  const failure = underWay
    ? null
    : run?.state === "failed"
      ? (run.failure ?? table.failure)
      : table.status === "failed"
        ? table.failure
        : null;
  return (
    <article className={`panel card${failure ? " card--bad" : ""}`} aria-labelledby={id}>
      <header>
        <h3 id={id}>{title}</h3>
        <Badge label={FRESHNESS[table.freshness]} />
        <p className="muted">{subtitle}</p>
      </header>
      {run && <Progress run={run} />}
      {failure && <Explained explanation={explain(failure)} detail={failure.message} />}
      <dl className="facts">
        <Fact name="Última carga" title={instant(table.last_extracted_at)}>
          {distance(table.last_extracted_at, now)}
        </Fact>
        <Fact name="Próxima" title={instant(table.next_due)}>
          {nextDue(table, now)}
        </Fact>
        <Fact name="Filas">{count(table.records)}</Fact>
        <Fact name="Duración">{duration(table.duration_seconds)}</Fact>
        <Fact name="Costo" title={table.bytes_billed == null ? undefined : `${bytes(table.bytes_billed)} cobrados`}>
          {cost(table.estimated_cost_usd)}
        </Fact>
        <Fact name="Último día">{table.last_partition ? days(table.last_partition) : "—"}</Fact>
        <Fact name="Versión" title="Sube en uno con cada carga que cambia filas de la tabla">
          {count(table.data_version)}
        </Fact>
      </dl>
      {mayRefresh && (
        <div className="card__action">
          <button
            type="button"
            className="button"
            aria-label={`Actualizar ${title}`}
            aria-disabled={reason !== null}
            aria-describedby={`${id}-reason`}
            onClick={() => {
              if (reason === null) void triggerRefresh(force, [table.table]);
            }}
          >
            <Icon name="refresh" /> Actualizar
          </button>
          <span id={`${id}-reason`} className="muted">
            {reason}
          </span>
        </div>
      )}
      {refused && (
        <div role="alert">
          <Explained explanation={explainRefusal(refused)} detail={refused.message} />
        </div>
      )}
      <details className="card__history">
        <summary>
          Historial<span className="hidden"> de {title}</span>
        </summary>
        {detail ? <History extractions={detail.extractions} title={title} /> : <p>Cargando…</p>}
      </details>
    </article>
  );
}

function nextDue({ next_due, freshness, run_under_way }: TableStatus, now: number): string {
  if (run_under_way) return "en curso";
  if (next_due && Date.parse(next_due) > now) return distance(next_due, now);
  return freshness === "never" && !next_due ? "en cuanto se pueda" : "le toca ahora";
}

function Progress({ run }: { run: TableRun }) {
  const underWay = run.state === "queued" || run.state === "running";
  return (
    <div className={`progress progress--${run.state}`}>
      <Badge label={PROGRESS[run.state]} turning={run.state === "running"} />
      <span>
        {run.rows != null && count(run.rows, "fila")}
        {run.rows != null && underWay && " hasta ahora"}
      </span>
      {run.partitions && <span className="muted">{days(run.partitions)}</span>}
      {run.state === "running" && <span className="progress__bar" aria-hidden="true" />}
    </div>
  );
}

function Fact({ name, title, children }: { name: string; title?: string | undefined; children: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd title={title}>{children}</dd>
    </div>
  );
}
