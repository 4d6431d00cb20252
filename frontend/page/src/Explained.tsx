import { useState } from "react";
import { AskForHelp } from "./contact";
import { Icon } from "./Icon";
import { errorReport } from "./state";
import type { Explanation } from "./words";

interface Props {
  explanation: Explanation;
  /** The original error text, for engineers. */
  detail: string;
  /** What it is about, such as the table's title. */
  subject?: string | undefined;
  /** When it happened, as text. */
  at?: string | undefined;
  runUrl?: string | null | undefined;
}

/** What went wrong, what happens next, what to do and whom to ask, and the original error text for the engineer. */
export function Explained({ explanation, detail, subject, at, runUrl }: Props) {
  const { title, what, next, todo } = explanation;
  const report = errorReport({
    Pulso: location.href.split("#")[0],
    Tabla: subject,
    Error: title,
    Cuándo: at,
    Detalle: detail,
    Corrida: runUrl,
  });
  return (
    <div className="explained">
      <p className="explained__title">
        <Icon name="alert" /> {subject ? `${subject}: ${title}` : title}
      </p>
      <p>{what}</p>
      <p>
        <strong>Qué sigue:</strong> {next}
      </p>
      <p>
        <strong>Qué hacer:</strong> {todo}
      </p>
      <AskForHelp text={report} />
      <div className="explained__tools">
        <Copy text={report} />
        {runUrl && (
          <a href={runUrl} rel="noreferrer" target="_blank">
            Ver la corrida en Dagster
          </a>
        )}
      </div>
      <details>
        <summary>Detalle técnico</summary>
        <pre lang="en">{detail}</pre>
      </details>
    </div>
  );
}

function Copy({ text }: { text: string }) {
  const [said, setSaid] = useState("");
  return (
    <>
      <button
        type="button"
        className="button button--small"
        onClick={() => void copy(text).then((done) => setSaid(done ? "Copiado" : "No se pudo copiar"))}
      >
        Copiar el error
      </button>
      <span role="status">{said}</span>
    </>
  );
}

/** Whether the text is in the clipboard now. Browsers keep the modern way for pages with TLS. */
async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
