import { useEffect, useId, useRef } from "react";
import { type Refresh, type Status, type TableRun, type TableStatus, useETLRefresh } from "../../src";
import { Badge } from "./Badge";
import { Explained } from "./Explained";
import { clockTime, count } from "./format";
import { Icon } from "./Icon";
import { changeOf, nextRefresh, type Outlook, stateOf } from "./state";
import { CONDITIONS, explainRefusal, PROGRESS } from "./words";

interface Props {
  table: TableStatus;
  status: Status;
  run: TableRun | null;
  outlook: Outlook;
  mayRefresh: boolean;
  force: boolean;
  onProgress: (refresh: Refresh | null) => void;
}

/** What a supervisor asks of a table, in one row: its state, until when its data reach, when they come next, what changed. */
export function Row({ table, status, run, outlook, mayRefresh, force, onProgress }: Props) {
  const { triggerRefresh, isRefreshing, progress, error } = useETLRefresh(1000, { tables: [table.table] });
  const tell = useRef(onProgress);
  tell.current = onProgress;
  useEffect(() => tell.current(progress), [progress]);
  const id = useId();
  const { title } = table;
  const state = stateOf(table, outlook.now);
  const underWay = run?.state === "queued" || run?.state === "running";
  const reason = whyNot(status, outlook, underWay, isRefreshing);
  const next = nextRefresh(table, status, outlook);
  const refused = error && !error.refresh ? error : null;
  return (
    <article className={`row row--${state}`} aria-labelledby={id} id={`tabla-${table.table}`}>
      <h3 id={id}>{title}</h3>
      <p className="row__state">
        <Badge label={CONDITIONS[state]} />
      </p>
      <p className="row__until">
        {table.data_until && (
          <>
            <span className="row__name">Datos hasta</span>{" "}
            <time dateTime={table.data_until}>{clockTime(table.data_until, outlook.now)}</time>
          </>
        )}
      </p>
      <p className="row__next">
        {next && (
          <>
            <span className="row__name">Próxima</span> {next}
          </>
        )}
      </p>
      <div className="row__last">
        <Last table={table} run={run} now={outlook.now} />
      </div>
      {mayRefresh && (
        <div className="row__action">
          <button
            type="button"
            className="button"
            aria-label={`Actualizar ${title}`}
            aria-disabled={reason !== null}
            aria-describedby={reason ? `${id}-reason` : undefined}
            title={reason ?? undefined}
            onClick={() => {
              if (reason === null) void triggerRefresh(force, [table.table]);
            }}
          >
            <Icon name="refresh" turning={underWay} /> <span className="row__word">Actualizar</span>
          </button>
          <span id={`${id}-reason`} className="hidden">
            {reason}
          </span>
        </div>
      )}
      {refused && (
        <div role="alert" className="row__refused">
          <Explained explanation={explainRefusal(refused)} detail={refused.message} subject={title} />
        </div>
      )}
    </article>
  );
}

/** Why the user cannot ask for a refresh now. Null if the user can. */
export function whyNot(status: Status, outlook: Outlook, underWay: boolean, asking: boolean): string | null {
  if (outlook.offline) return "Sin conexión con Pulso";
  if (outlook.databaseAway) return "PostgreSQL no responde";
  if (!status.dagster) return "Dagster no responde";
  if (underWay) return "Ya se está actualizando";
  return asking ? "Pidiendo…" : null;
}

function Last({ table, run, now }: { table: TableStatus; run: TableRun | null; now: number }) {
  if (run && run.state !== "success") {
    const running = run.state === "running";
    return (
      <p className="progress">
        <Badge label={PROGRESS[run.state]} turning={running} />{" "}
        {run.state === "failed" || run.state === "canceled"
          ? (run.failure?.title ?? table.failure?.title)
          : run.rows != null && `${count(run.rows, "fila")} hasta ahora`}
      </p>
    );
  }
  if (table.state === "failed" && table.failure) return <p className="row__failure">{table.failure.title}</p>;
  const load = table.last_load;
  const change = load?.undoes == null ? changeOf(load) : "se deshizo una carga";
  return (
    <p>
      {run?.state === "success" && (
        <>
          <Badge label={PROGRESS.success} />{" "}
        </>
      )}
      {load ? (
        <>
          <span className="row__when">
            <span className="row__name">Última</span>{" "}
            <time dateTime={load.finished_at}>{clockTime(load.finished_at, now)}</time>
            {change && ": "}
          </span>
          {change}
        </>
      ) : (
        "Todavía no se ha cargado"
      )}
    </p>
  );
}
