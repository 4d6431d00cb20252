import { useCallback, useEffect, useMemo, useState } from "react";
import { createClient, ETLError, type Session } from "../../src";
import { Dashboard } from "./Dashboard";
import { Explained } from "./Explained";
import { TokenForm } from "./TokenForm";
import { explainRefusal } from "./words";

/** Where the page stands, and with it the API: a tenant's has a path of its own, and a token of its own. */
const HERE = new URL(".", document.baseURI);
const KEY = `pulso-token${HERE.pathname.replace(/\/$/, "")}`;
const RETRY_MS = 5000;

/** Finds out who asks, with a token where one is needed, and shows the tables. */
export function App() {
  const [token, setToken] = useState(() => sessionStorage.getItem(KEY));
  const client = useMemo(() => createClient({ baseUrl: HERE.href, token }), [token]);
  const [session, setSession] = useState<Session | null>(null);
  const [error, setError] = useState<ETLError | null>(null);
  const [round, setRound] = useState(0);

  // biome-ignore lint/correctness/useExhaustiveDependencies: a new round asks again
  useEffect(() => {
    const life = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    client.session(life.signal).then(
      (found) => {
        setError(null);
        setSession(found);
      },
      (thrown) => {
        if (life.signal.aborted || !(thrown instanceof ETLError)) return;
        setError(thrown);
        if (thrown.passes) timer = setTimeout(() => setRound((round) => round + 1), RETRY_MS);
      },
    );
    return () => {
      life.abort();
      clearTimeout(timer);
    };
  }, [client, round]);

  const signIn = useCallback((given: string | null) => {
    if (given) sessionStorage.setItem(KEY, given);
    else sessionStorage.removeItem(KEY);
    setSession(null);
    setError(null);
    setToken(given);
    setRound((round) => round + 1);
  }, []);
  const signedOut = useCallback((error: ETLError) => {
    setSession(null);
    setError(error);
  }, []);

  if (error?.status === 401) return <TokenForm refused={token !== null} onToken={signIn} />;
  if (session) {
    const forget = token === null ? null : () => signIn(null);
    return <Dashboard client={client} session={session} onForget={forget} onSignedOut={signedOut} />;
  }
  return (
    <main className="alone">
      <h1>Pulso</h1>
      {error ? (
        <Explained explanation={explainRefusal(error)} detail={error.message} />
      ) : (
        <p role="status">Cargando…</p>
      )}
    </main>
  );
}
