import { useQueries, useQuery } from "@tanstack/react-query";
import { useId, useState } from "react";
import {
  type ChangedRowShown,
  changesQueryOptions,
  type ETLClient,
  ETLError,
  type LoadChanges,
  type Status,
  type TableChanges,
  type Undoing,
} from "../../src";
import { Explained } from "./Explained";
import { amount } from "./figures";
import { clockTime, count, day, instant } from "./format";
import { biggest, change, rowsOf, sentence } from "./movements";
import { explainRefusal, type Titles } from "./words";

const SHOWN = 6;
const ROWS = 50;

interface Props {
  client: ETLClient;
  status: Status;
  titles: Titles;
  now: number;
}

/** What the last load of each table moved, the biggest movements first. */
export function Changes({ client, status, titles, now }: Props) {
  const told = useQueries({ queries: status.tables.map(({ table }) => changesQueryOptions(client, table)) });
  const moved = biggest(told.flatMap(({ data }) => (data ? [data] : [])));
  if (moved.length === 0) return null;
  const line = (one: (typeof moved)[number]) => (
    <li key={`${one.load.load_id} ${one.movement.day} ${one.movement.figure}`}>
      {sentence(one)}{" "}
      <span className="muted">
        ({titles[one.changes.table]},{" "}
        <time dateTime={one.load.committed_at}>{clockTime(one.load.committed_at, now)}</time>)
      </span>
    </li>
  );
  return (
    <section aria-labelledby="cambios">
      <h2 id="cambios">Qué cambió en la última carga</h2>
      <ul className="panel moves">{moved.slice(0, SHOWN).map(line)}</ul>
      {moved.length > SHOWN && (
        <details className="moves__more">
          <summary>{count(moved.length - SHOWN, "cambio")} más</summary>
          <ul className="panel moves">{moved.slice(SHOWN).map(line)}</ul>
        </details>
      )}
    </section>
  );
}

interface LogProps {
  client: ETLClient;
  table: string;
  title: string;
  isAdmin: boolean;
}

/** The change log of a table for engineers: loads, their days and rows, and for administrators the way back. */
export function ChangeLog({ client, table, title, isAdmin }: LogProps) {
  const { data, isError } = useQuery(changesQueryOptions(client, table));
  const [older, setOlder] = useState<TableChanges[]>([]);
  const [said, setSaid] = useState("");
  if (isError) return <p role="status">No se pudieron leer los cambios. La página los vuelve a pedir sola.</p>;
  if (!data) return <p>Cargando…</p>;
  if (data.loads.length === 0) return <p className="muted">Todavía no hay cambios registrados.</p>;
  const known = new Set(data.loads.map(({ load_id }) => load_id));
  const loads = [...data.loads, ...older.flatMap((page) => page.loads).filter(({ load_id }) => !known.has(load_id))];
  const next = (older.at(-1) ?? data).older;
  const more = () =>
    void client.tableChanges(table, { before: next ?? null }).then(
      (found) => setOlder([...older, found]),
      () => setSaid("No se pudieron leer; pulse otra vez."),
    );
  return (
    <>
      <ol className="loads">
        {loads.map((load) => (
          <li key={load.load_id}>
            <Load {...{ client, table, title, load, isAdmin }} />
          </li>
        ))}
      </ol>
      {next != null && (
        <button type="button" className="button button--quiet" onClick={more}>
          Cargas más antiguas<span className="hidden"> de {title}</span>
        </button>
      )}
      <p role="status">{said}</p>
    </>
  );
}

function Load({ client, table, title, load, isAdmin }: LogProps & { load: LoadChanges }) {
  const [rows, setRows] = useState<ChangedRowShown[] | null>(null);
  const [said, setSaid] = useState("");
  const name = `carga ${load.load_id} de ${title}`;
  const total = load.days.reduce((sum, one) => sum + one.new + one.changed + one.gone, 0);
  const read = () =>
    void client.tableChanges(table, { load: load.load_id, limit: ROWS, offset: rows?.length ?? 0 }).then(
      (found) => setRows([...(rows ?? []), ...(found.rows ?? [])]),
      () => setSaid("No se pudieron leer; pulse otra vez."),
    );
  const hasRows = load.undoes == null && load.reason == null;
  return (
    <>
      <p>
        <strong>Carga {load.load_id}</strong>, <time dateTime={load.committed_at}>{instant(load.committed_at)}</time>
        {load.undoes != null && `: deshizo la carga ${load.undoes}`}
        {load.undone_by != null && `: deshecha por la carga ${load.undone_by}`}
        {load.run_url && (
          <>
            {" · "}
            <a href={load.run_url}>
              Corrida en Dagster<span className="hidden"> de la {name}</span>
            </a>
          </>
        )}
      </p>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls, and must do so by keyboard */}
      <section className="scroll scroll--low" aria-label={`Días de la ${name}`} tabIndex={0}>
        <table className="list">
          <caption className="hidden">Qué cambió la {name}</caption>
          <thead>
            <tr>
              <th scope="col">Día</th>
              <th scope="col">Filas</th>
              <th scope="col">Cifras antes y después</th>
            </tr>
          </thead>
          <tbody>
            {load.days.map((one) => (
              <tr key={one.day}>
                <th scope="row">{day(one.day)}</th>
                <td>{rowsOf(one)}</td>
                <td>
                  {load.movements
                    .filter((movement) => movement.day === one.day)
                    .map(
                      (movement) =>
                        `${movement.title}: ${amount(movement.before, movement.unit)} → ${amount(movement.after, movement.unit)} (${change(movement)})`,
                    )
                    .join("; ")}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </section>
      {rows && <Rows rows={rows} name={name} />}
      <p className="loads__tools">
        {hasRows && (rows === null || (rows.length > 0 && rows.length % ROWS === 0)) && (
          <button type="button" className="button button--quiet" onClick={read}>
            {rows ? "Más filas" : "Ver filas"}
            <span className="hidden"> de la {name}</span>
          </button>
        )}
        {rows?.length === 0 && (
          <span className="muted">No hay valores guardados: fue una primera carga, o ya pasó su tiempo.</span>
        )}
        {load.reason && load.undoes == null && (
          <span className="muted">{count(total, "fila")}; no se guardaron sus valores.</span>
        )}
      </p>
      {isAdmin && load.undoable && <Undo {...{ client, table, load, name }} />}
      <p role="status">{said}</p>
    </>
  );
}

/** The changed rows: key, and each column that changed, before and after. */
function Rows({ rows, name }: { rows: ChangedRowShown[]; name: string }) {
  if (rows.length === 0) return null;
  return (
    /* biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls, and must do so by keyboard */
    <section className="scroll scroll--low" aria-label={`Filas de la ${name}`} tabIndex={0}>
      <table className="list">
        <caption className="hidden">Filas que cambió la {name}</caption>
        <thead>
          <tr>
            <th scope="col">Fila</th>
            <th scope="col">Cambio</th>
          </tr>
        </thead>
        <tbody>
          {rows.map(({ key, old, new: now }, at) => (
            // biome-ignore lint/suspicious/noArrayIndexKey: rows are only added, and a key may be there twice
            <tr key={at}>
              <th scope="row">{Object.values(key).join(" · ")}</th>
              <td>{differences(old, now)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

const STAMPS = new Set(["created_at", "updated_at"]);

function differences(old: ChangedRowShown["old"], now: ChangedRowShown["new"]): string {
  if (!old) return "nueva";
  if (!now) return "quitada";
  return Object.keys(now)
    .filter((column) => !STAMPS.has(column) && old[column] !== now[column])
    .map((column) => `${column}: ${old[column] ?? "nulo"} → ${now[column] ?? "nulo"}`)
    .join("; ");
}

interface UndoProps {
  client: ETLClient;
  table: string;
  load: LoadChanges;
  name: string;
}

/** Asks what an undoing would do, tells it, and does it only then. */
function Undo({ client, table, load, name }: UndoProps) {
  const id = useId();
  const [asked, setAsked] = useState<Undoing | null>(null);
  const [done, setDone] = useState<Undoing | null>(null);
  const [error, setError] = useState<ETLError | null>(null);
  const [busy, setBusy] = useState(false);
  const call = (dry_run: boolean) => {
    if (busy) return;
    setBusy(true);
    setError(null);
    client
      .undo(table, { load: load.load_id, dry_run })
      .then(dry_run ? setAsked : setDone, (reason: unknown) => {
        setAsked(null);
        setError(reason instanceof ETLError ? reason : new ETLError(String(reason)));
      })
      .finally(() => setBusy(false));
  };
  if (done)
    return <p role="status">Deshecha. Hasta el {instant(done.held_until)} la tabla solo se actualiza a pedido.</p>;
  const rows = asked?.days.reduce((sum, one) => sum + one.new + one.changed + one.gone, 0);
  return (
    <div className="undo">
      {asked ? (
        <>
          <p id={id} role="status">
            {count(rows, "fila")} de {count(asked.days.length, "día")} {rows === 1 ? "vuelve" : "vuelven"} a como{" "}
            {rows === 1 ? "estaba" : "estaban"} antes de la carga {load.load_id}. Después, hasta el{" "}
            {instant(asked.held_until)}, la tabla solo se actualiza a pedido; luego Pulso lee otra vez esos días.
          </p>
          <button
            type="button"
            className="button button--main"
            aria-describedby={id}
            aria-disabled={busy}
            onClick={() => call(false)}
          >
            Deshacer ahora<span className="hidden"> la {name}</span>
          </button>{" "}
          <button type="button" className="button button--quiet" onClick={() => setAsked(null)}>
            Cancelar
          </button>
        </>
      ) : (
        <button type="button" className="button" aria-disabled={busy} onClick={() => call(true)}>
          Deshacer<span className="hidden"> la {name}</span>…
        </button>
      )}
      {error && (
        <div role="alert">
          <Explained explanation={explainRefusal(error)} detail={error.message} />
        </div>
      )}
    </div>
  );
}
