import { useCallback, useEffect, useMemo, useState } from "react";
import { type Contact, createClient, ETLError, type Session } from "../../src";
import { ContactContext } from "./contact";
import { Dashboard } from "./Dashboard";
import { Explained } from "./Explained";
import { keeping } from "./keeping";
import { isToken, TokenForm } from "./TokenForm";
import { explainNothing } from "./words";

/** The path of the page, which is also the path of the API. Each tenant has its own path and its own token. */
const HERE = new URL(".", document.baseURI);
const KEEPING = keeping(HERE.pathname, sessionStorage, localStorage);
const RETRY_MS = 5000;

/** The token of a link, `#token=…`. This tab keeps it, and the address bar no longer shows it. */
function takeToken(): string | null {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given || !isToken(given)) return null;
  history.replaceState(history.state, "", location.pathname + location.search);
  KEEPING.keep(given, false);
  return given;
}

/** Finds out who the user is, asks for a token if one is needed, and shows the tables. */
export function App() {
  const [token, setToken] = useState(() => takeToken() ?? KEEPING.find());
  const client = useMemo(() => createClient({ baseUrl: HERE.href, token }), [token]);
  const [session, setSession] = useState<Session | null>(null);
  const [error, setError] = useState<ETLError | null>(null);
  const [round, setRound] = useState(0);
  const [contact, setContact] = useState<Contact | null>(null);

  useEffect(() => {
    const life = new AbortController();
    // Without an answer the page names nobody.
    client.contact(life.signal).then(setContact, () => undefined);
    return () => life.abort();
  }, [client]);

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

  const signIn = useCallback((given: string | null, onDevice = false) => {
    if (given) KEEPING.keep(given, onDevice);
    else KEEPING.forget();
    setSession(null);
    setError(null);
    setToken(given);
    setRound((round) => round + 1);
  }, []);
  const signedOut = useCallback((error: ETLError) => {
    setSession(null);
    setError(error);
  }, []);

  useEffect(() => {
    // If the user opens such a link in this tab, the browser does not load the page again.
    const follow = () => {
      const given = takeToken();
      if (given) signIn(given);
    };
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, [signIn]);

  if (error?.status === 401) return <TokenForm refused={token !== null} onToken={signIn} />;
  if (session) {
    const forget = token === null ? null : () => signIn(null);
    return (
      <ContactContext.Provider value={contact}>
        <Dashboard client={client} session={session} onForget={forget} onSignedOut={signedOut} />
      </ContactContext.Provider>
    );
  }
  return (
    <ContactContext.Provider value={contact}>
      <main className="alone">
        <h1>Pulso</h1>
        {error ? (
          <Explained explanation={explainNothing(error, RETRY_MS / 1000)} detail={error.message} />
        ) : (
          <p role="status">Cargando…</p>
        )}
      </main>
    </ContactContext.Provider>
  );
}
