import { useCallback, useEffect, useMemo, useState } from "react";
import {
  type Connection,
  type ETLClient,
  type ETLError,
  ETLProvider,
  type Session,
  type Status,
  type TableStatus,
  useETLEvents,
  useETLRefresh,
} from "../../src";
import { Explained } from "./Explained";
import { clockTime, count, instant, placeOf, writeTimesIn } from "./format";
import { Icon } from "./Icon";
import { Coming, Missing, useModule } from "./later";
import { progressOf, useAnnouncement, useOutlook } from "./live";
import { Row, whyNot } from "./Strip";
import { type Banner, bannerOf, type Outlook, stateOf, titleOf, worstFirst } from "./state";
import { CONDITIONS, explain, explainRefusal, type Titles, titlesOf } from "./words";

const CONNECTIONS: Record<Connection, { text: string; tone: string }> = {
  connecting: { text: "Conectando…", tone: "calm" },
  live: { text: "En vivo", tone: "good" },
  reconnecting: { text: "Reconectando…", tone: "warn" },
  polling: { text: "Sin conexión directa; se consulta cada tanto", tone: "warn" },
  closed: { text: "Sin conexión", tone: "bad" },
};

const loadBelow = () => import("./Below");

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
  const events = useETLEvents(client, session.status);
  const { error, connection } = events;
  const status = events.status ?? session.status;
  writeTimesIn(status.timezone);
  const outlook = useOutlook(status, events);
  const banner = bannerOf(status, outlook);
  const titles = useMemo(() => titlesOf(status.tables), [status.tables]);
  const together = useETLRefresh();
  const [force, setForce] = useState(false);
  // The strip comes first; what stands below it follows as there is time.
  const below = useModule(loadBelow);
  const [isWhole, setWhole] = useState(false);
  const whole = useCallback(() => setWhole(true), []);
  const mayRefresh = session.role !== "read";
  const shown = CONNECTIONS[outlook.offline ? "closed" : connection];
  const link = outlook.databaseAway && !outlook.offline ? { text: "Sin datos nuevos", tone: "warn" } : shown;

  useEffect(() => {
    if (error?.status === 401) onSignedOut(error);
  }, [error, onSignedOut]);
  useEffect(() => {
    document.title = titleOf(banner);
  }, [banner]);

  return (
    <>
      <a className="skip" href="#tablas">
        Ir a las tablas
      </a>
      <header className="top">
        <p className="brand">
          <Icon name="wave" /> Pulso
        </p>
        <p className={`connection connection--${link.tone}`}>{link.text}</p>
        <p className="printed">Impreso: {instant(new Date(outlook.now).toISOString())}</p>
      </header>
      <main>
        <Summary banner={banner} status={status} now={outlook.now} />
        <Tables {...{ status, titles, outlook, mayRefresh, force, together }} />
        <Actions {...{ status, outlook, mayRefresh, force, ...together }} onForce={setForce} />
        <Problems tables={banner.troubled} />
        {below === null && <Coming />}
        {below === "missing" && <Missing />}
        {below && below !== "missing" && (
          <below.Below {...{ client, status, titles, outlook }} isAdmin={session.role === "admin"} onEnd={whole} />
        )}
      </main>
      {(isWhole || below === "missing") && (
        <footer>
          <p>Horas {placeOf(status.timezone)}. Costos estimados por Pulso a partir de los bytes que BigQuery cobra.</p>
          {onForget && (
            <button type="button" className="button button--quiet" onClick={onForget}>
              Olvidar la clave
            </button>
          )}
        </footer>
      )}
    </>
  );
}

function Summary({ banner, status, now }: { banner: Banner; status: Status; now: number }) {
  const { text, why, tone, icon, troubled, outage } = banner;
  const oldest = outage ? null : status.oldest_update;
  return (
    <section className={`overall overall--${tone}`} aria-labelledby="overall">
      <Icon name={icon} />
      <div>
        <h1 id="overall">{text}</h1>
        {troubled.length > 0 && troubled.length < status.tables.length && (
          <ul className="overall__tables">
            {troubled.map((table) => (
              <li key={table.table}>
                <a href={`#${table.failure ? "problema" : "tabla"}-${table.table}`}>{table.title}</a>:{" "}
                {CONDITIONS[stateOf(table, now)].text.toLowerCase()}
              </li>
            ))}
          </ul>
        )}
        <p>
          {why}{" "}
          {oldest && (
            <>
              {status.tables.length > 1 ? "La tabla más antigua" : "Última actualización"}:{" "}
              <time dateTime={oldest}>{clockTime(oldest, now)}</time>.
            </>
          )}
        </p>
      </div>
    </section>
  );
}

/** What went wrong with each table, what happens next, and whom to ask. */
function Problems({ tables }: { tables: readonly TableStatus[] }) {
  const failed = tables.filter((table) => table.failure);
  if (failed.length === 0) return null;
  return (
    <section aria-labelledby="problemas">
      <h2 id="problemas">Qué falló</h2>
      <ul className="problems">
        {failed.map((table) => (
          <li key={table.table} id={`problema-${table.table}`}>
            {table.failure && (
              <Explained
                explanation={explain(table.failure)}
                detail={table.failure.message}
                subject={table.title}
                runUrl={table.failure.run_url}
              />
            )}
          </li>
        ))}
      </ul>
    </section>
  );
}

interface ActionsProps extends ReturnType<typeof useETLRefresh> {
  status: Status;
  outlook: Outlook;
  mayRefresh: boolean;
  force: boolean;
  onForce: (force: boolean) => void;
}

function Actions({
  status,
  outlook,
  mayRefresh,
  force,
  onForce,
  triggerRefresh,
  isRefreshing,
  progress,
  error,
}: ActionsProps) {
  if (!mayRefresh) {
    return <p className="notice">Su clave solo permite mirar. Para actualizar hace falta una clave con ese permiso.</p>;
  }
  const reason = whyNot(status, outlook, isRefreshing, false);
  const launch = (tables?: string[]) => () => {
    if (reason === null) void triggerRefresh(force, tables);
  };
  const left = Object.entries(progress?.runs ?? {}).filter(([, { state }]) => state === "skipped");
  const isHeld = (name: string) => status.tables.some(({ table, held_until }) => table === name && held_until != null);
  const held = left.filter(([name]) => isHeld(name)).length;
  const skipped = left.length - held;
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
        {reason && !isRefreshing && reason}
        {isRefreshing && "Ya se están actualizando"}
        {!isRefreshing &&
          skipped > 0 &&
          `${count(skipped, "tabla")} ya ${skipped === 1 ? "estaba fresca" : "estaban frescas"}. `}
        {!isRefreshing &&
          held > 0 &&
          `${count(held, "tabla")} en pausa, porque se deshizo una carga: marque «Aunque estén frescas» para leerla ya.`}
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
  outlook: Outlook;
  mayRefresh: boolean;
  force: boolean;
  together: ReturnType<typeof useETLRefresh>;
}

function Tables({ status, titles, outlook, mayRefresh, force, together }: TablesProps) {
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
      <h2 id="tablas" tabIndex={-1} className="hidden">
        Tablas
      </h2>
      <p className="hidden" role="status">
        {announcement}
      </p>
      <div className="panel strip">
        {worstFirst(status.tables, outlook.now).map((table) => (
          <Row
            key={table.table}
            run={progress[table.table] ?? null}
            onProgress={(refresh) => setAlone((alone) => ({ ...alone, [table.table]: refresh }))}
            {...{ table, status, outlook, mayRefresh, force }}
          />
        ))}
      </div>
    </section>
  );
}
