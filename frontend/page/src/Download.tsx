import { type FormEvent, useState } from "react";
import type { ETLClient, TableStatus } from "../../src";
import { asETLError, type ETLError } from "../../src/errors";
import { Explained } from "./Explained";
import { earlier, today } from "./format";
import { explainRefusal } from "./words";

export const MOST_DAYS = 366;
const DAY_MS = 86_400_000;

/** Why the days can't be downloaded; null if they can. */
export function whyNotDays(from: string, to: string): string | null {
  const days = (Date.parse(to) - Date.parse(from)) / DAY_MS + 1;
  if (Number.isNaN(days)) return "Elija el primer día y el último.";
  if (days < 1) return "El primer día debe ser anterior al último.";
  return days > MOST_DAYS ? `Elija ${MOST_DAYS} días como máximo.` : null;
}

interface Props {
  client: ETLClient;
  tables: readonly TableStatus[];
  now: number;
}

/** The rows of a table as a file for a spreadsheet. */
export function Download({ client, tables, now }: Props) {
  const [table, setTable] = useState(tables[0]?.table ?? "");
  const [days, setDays] = useState({ from: earlier(today(now), 6), to: today(now) });
  const [said, setSaid] = useState("");
  const [error, setError] = useState<ETLError | null>(null);
  const [busy, setBusy] = useState(false);
  const download = async (event: FormEvent) => {
    event.preventDefault();
    const reason = whyNotDays(days.from, days.to);
    setError(null);
    setSaid(reason ?? "Preparando el archivo…");
    if (reason || busy) return;
    setBusy(true);
    try {
      save(await client.tableRows(table, days.from, days.to), `${table}_${days.from}_${days.to}.csv`);
      setSaid("Listo: el archivo está entre sus descargas.");
    } catch (thrown) {
      setSaid("");
      setError(asETLError(thrown));
    }
    setBusy(false);
  };
  return (
    <details className="download">
      <summary>Descargar filas (CSV)</summary>
      <form className="panel" onSubmit={download} noValidate>
        <label>
          Tabla
          <select value={table} onChange={(event) => setTable(event.target.value)}>
            {tables.map((one) => (
              <option key={one.table} value={one.table}>
                {one.title}
              </option>
            ))}
          </select>
        </label>
        <label>
          Desde
          <input type="date" value={days.from} onChange={(event) => setDays({ ...days, from: event.target.value })} />
        </label>
        <label>
          Hasta
          <input type="date" value={days.to} onChange={(event) => setDays({ ...days, to: event.target.value })} />
        </label>
        <button type="submit" className="button" aria-disabled={busy}>
          Descargar CSV
        </button>
        <p role="status">{said}</p>
        {error && (
          <div role="alert">
            <Explained explanation={explainRefusal(error)} detail={error.message} />
          </div>
        )}
      </form>
    </details>
  );
}

function save(file: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  // The browser has begun to save it by then.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
