import { Icon } from "./Icon";
import type { Explanation } from "./words";

/** What went wrong, what to do, and for the engineer the text as it was written. */
export function Explained({ explanation, detail }: { explanation: Explanation; detail: string }) {
  return (
    <div className="explained">
      <p className="explained__title">
        <Icon name="alert" /> {explanation.title}
      </p>
      <p>{explanation.what}</p>
      <p>
        <strong>Qué sigue:</strong> {explanation.next}
      </p>
      <p>
        <strong>Qué hacer:</strong> {explanation.todo}
      </p>
      <details>
        <summary>Detalle técnico</summary>
        <pre lang="en">{detail}</pre>
      </details>
    </div>
  );
}
