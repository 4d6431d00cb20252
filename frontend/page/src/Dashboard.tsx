import { useEffect, useMemo, useState } from "react";
import {
  type Connection,
  type ETLClient,
  type ETLError,
  ETLProvider,
  type Session,
  type Status,
  useETLEvents,
  useETLRefresh,
} from "../../src";
import { Activity } from "./Activity";
import { Calendar } from "./Calendar";
import { Explained } from "./Explained";
import { count, distance, instant, placeOf, writeTimesIn } from "./format";
import { Icon } from "./Icon";
import { progressOf, useAnnouncement, useDetails, useNow } from "./live";
import { TableCard } from "./TableCard";
import { explainRefusal, overall, type Titles, titlesOf } from "./words";

const CONNECTIONS: Record<Connection, { text: string; tone: string }> = {
  connecting: { text: "Conectando…", tone: "calm" },
  live: { text: "En vivo", tone: "good" },
  reconnecting: { text: "Reconectando…", tone: "warn" },
  polling: { text: "Sin conexión directa; se consulta cada tanto", tone: "warn" },
  closed: { text: "Sin conexión", tone: "bad" },
};

interface Props {
  client: ETLClient;
  session: Session;
  onForget: (() => void) | null;
  onSignedOut: (error: ETLError) => void;
}

export function Dashboard(props: Props) {
  return (
    <ETLProvider client={props.client}>
      <Watched {...props} />
    </ETLProvider>
  );
}

function Watched({ client, session, onForget, onSignedOut }: Props) {
  const { status: told, error, connection } = useETLEvents(client, session.status);
  const status = told ?? session.status;
  const now = useNow(status);
  writeTimesIn(status.timezone);
  const titles = useMemo(() => titlesOf(status.tables), [status.tables]);
  const details = useDetails(client, status.tables);
  const together = useETLRefresh();
  const [force, setForce] = useState(false);
  const mayRefresh = session.role !== "read";

  useEffect(() => {
    if (error?.status === 401) onSignedOut(error);
  }, [error, onSignedOut]);

  return (
    <>
      <a className="skip" href="#tablas">
        Ir a las tablas
      </a>
      <header className="top">
        <p className="brand">
          <Icon name="wave" /> Pulso
        </p>
        <p className={`connection connection--${CONNECTIONS[connection].tone}`}>{CONNECTIONS[connection].text}</p>
        {onForget && (
          <button type="button" className="button button--quiet" onClick={onForget}>
            Olvidar la clave
          </button>
        )}
      </header>
      <main>
        <Summary status={status} now={now} />
        <div role="status">
          {error && error.status !== 401 && (
            <p className="notice">
              <Icon name="alert" /> {explainRefusal(error).title}. Lo que se ve es lo último que se supo.
            </p>
          )}
        </div>
        <Actions status={status} mayRefresh={mayRefresh} force={force} onForce={setForce} {...together} />
        <Tables {...{ status, titles, now, details, mayRefresh, force, together }} />
        <Calendar titles={titles} details={details} />
        <Activity extractions={status.recent_activity} titles={titles} now={now} />
      </main>
      <footer>
        Horas {placeOf(status.timezone)}. Costos estimados por Pulso a partir de los bytes que BigQuery cobra.
      </footer>
    </>
  );
}

function Summary({ status, now }: { status: Status; now: number }) {
  const { text, why, tone, icon } = overall(status);
  return (
    <section className={`overall overall--${tone}`} aria-labelledby="overall">
      <Icon name={icon} />
      <div>
        <h1 id="overall">{text}</h1>
        <p>{why}</p>
        <p className="muted">
          {status.last_updated ? (
            <>
              Última actualización <time dateTime={status.last_updated}>{distance(status.last_updated, now)}</time> (
              {instant(status.last_updated)})
            </>
          ) : (
            "Todavía no se ha cargado ninguna tabla"
          )}
        </p>
      </div>
    </section>
  );
}

interface ActionsProps extends ReturnType<typeof useETLRefresh> {
  status: Status;
  mayRefresh: boolean;
  force: boolean;
  onForce: (force: boolean) => void;
}

function Actions({ status, mayRefresh, force, onForce, triggerRefresh, isRefreshing, progress, error }: ActionsProps) {
  if (!mayRefresh) {
    return <p className="notice">Su clave solo permite mirar. Para actualizar hace falta una clave con ese permiso.</p>;
  }
  const reason = status.dagster ? (isRefreshing ? "Ya se están actualizando" : null) : "Dagster no responde";
  const launch = (tables?: string[]) => () => {
    if (reason === null) void triggerRefresh(force, tables);
  };
  const skipped = progress ? Object.values(progress.runs).filter(({ state }) => state === "skipped").length : 0;
  const refused = error && !error.refresh ? error : null;
  return (
    <section className="actions" aria-label="Actualizar varias tablas">
      <button type="button" className="button button--main" aria-disabled={reason !== null} onClick={launch()}>
        <Icon name="refresh" /> Actualizar el tablero
      </button>
      <button
        type="button"
        className="button"
        aria-disabled={reason !== null}
        onClick={launch(status.tables.map(({ table }) => table))}
      >
        Actualizar todo
      </button>
      <label className="check">
        <input type="checkbox" checked={force} onChange={(event) => onForce(event.target.checked)} />
        Aunque estén frescas
      </label>
      <p className="actions__said" role="status">
        {reason}
        {!isRefreshing &&
          skipped > 0 &&
          `${count(skipped, "tabla")} ya ${skipped === 1 ? "estaba fresca" : "estaban frescas"}.`}
      </p>
      {refused && (
        <div role="alert" className="actions__error">
          <Explained explanation={explainRefusal(refused)} detail={refused.message} />
        </div>
      )}
    </section>
  );
}

interface TablesProps {
  status: Status;
  titles: Titles;
  now: number;
  details: ReturnType<typeof useDetails>;
  mayRefresh: boolean;
  force: boolean;
  together: ReturnType<typeof useETLRefresh>;
}

function Tables({ status, titles, now, details, mayRefresh, force, together }: TablesProps) {
  const [alone, setAlone] = useState<Record<string, ReturnType<typeof useETLRefresh>["progress"]>>({});
  const progress = Object.fromEntries(
    status.tables.map((table) => {
      const newest = [together.progress, alone[table.table] ?? null]
        .filter((refresh) => refresh?.runs[table.table])
        .sort((one, other) => Date.parse(other?.started_at ?? "") - Date.parse(one?.started_at ?? ""))[0];
      return [table.table, progressOf(table, newest?.runs[table.table] ?? null)];
    }),
  );
  const announcement = useAnnouncement(progress, titles);
  return (
    <section aria-labelledby="tablas">
      <h2 id="tablas" tabIndex={-1}>
        Tablas
      </h2>
      <p className="hidden" role="status">
        {announcement}
      </p>
      <div className="cards">
        {status.tables.map((table) => (
          <TableCard
            key={table.table}
            table={table}
            run={progress[table.table] ?? null}
            detail={details[table.table]}
            now={now}
            mayRefresh={mayRefresh}
            dagster={status.dagster}
            force={force}
            onProgress={(refresh) => setAlone((alone) => ({ ...alone, [table.table]: refresh }))}
          />
        ))}
      </div>
    </section>
  );
}
