import { type FormEvent, useEffect, useId, useRef, useState } from "react";
import { isToken, KEPT_DAYS } from "./keeping";

/** Asks for the token that the API needs. `refused`: the API has refused the last one. */
export function TokenForm({
  refused,
  onToken,
}: {
  refused: boolean;
  onToken: (token: string, onDevice: boolean) => void;
}) {
  const [problem, setProblem] = useState(refused ? "Esa clave no es válida. Revise que esté completa." : "");
  const input = useRef<HTMLInputElement>(null);
  const [remember, setRemember] = useState(false);
  const id = useId();
  useEffect(() => input.current?.focus(), []);

  function submit(event: FormEvent): void {
    event.preventDefault();
    const token = input.current?.value.trim() ?? "";
    if (isToken(token)) onToken(token, remember);
    else setProblem(token ? "Esa clave no es válida. Revise que esté completa." : "Escriba su clave.");
  }

  return (
    <main className="alone">
      <form className="panel token" onSubmit={submit} noValidate>
        <h1>Pulso: estado de los datos</h1>
        <p id={`${id}-help`}>Para ver el estado hace falta una clave. Pídala al ingeniero de datos.</p>
        <label htmlFor={id}>Clave de acceso</label>
        <input
          ref={input}
          id={id}
          type="password"
          autoComplete="off"
          spellCheck="false"
          aria-describedby={`${id}-help ${id}-problem`}
          aria-invalid={problem !== ""}
        />
        <p id={`${id}-problem`} className="problem" role="alert">
          {problem}
        </p>
        <label className="check">
          <input type="checkbox" checked={remember} onChange={(event) => setRemember(event.target.checked)} />
          Recordar en este dispositivo
        </label>
        <button type="submit" className="button button--main">
          Entrar
        </button>
        <p className="muted">
          {remember
            ? `La clave queda en este navegador ${KEPT_DAYS} días, o hasta que pulse “Olvidar la clave”. Úselo solo en un dispositivo suyo.`
            : "La clave se guarda solo en esta pestaña y se olvida al cerrarla."}
        </p>
      </form>
    </main>
  );
}
