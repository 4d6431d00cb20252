import { queryOptions, useQuery, useQueryClient } from "@tanstack/react-query";
import { useCallback, useEffect, useMemo, useState } from "react";
import { type Contact, createClient, type ETLClient, type ETLError, etlKeys, type Session } from "../../src";
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

/** Who the user is, and the state of the tables, which the events then keep. While nobody answers, it is asked for again. */
function sessionQueryOptions(client: ETLClient) {
  return queryOptions<Session, ETLError>({
    queryKey: [...etlKeys.all(client), "session"],
    queryFn: async ({ signal, client: queries }) => {
      const session = await client.session(signal);
      queries.setQueryData(etlKeys.status(client), session.status);
      return session;
    },
    networkMode: "always",
    retry: false,
    staleTime: Number.POSITIVE_INFINITY,
    refetchInterval: ({ state: { error } }) => (error?.passes ? RETRY_MS : false),
  });
}

/** Finds out who the user is, asks for a token if one is needed, and shows the tables. */
export function App() {
  const [token, setToken] = useState(() => takeToken() ?? KEEPING.find());
  const client = useMemo(() => createClient({ baseUrl: HERE.href, token }), [token]);
  const queries = useQueryClient();
  const session = useQuery(sessionQueryOptions(client));
  const [signedOut, setSignedOut] = useState<ETLError | null>(null);
  const error = signedOut ?? session.error;
  const [contact, setContact] = useState<Contact | null>(null);

  useEffect(() => {
    const life = new AbortController();
    // Without an answer the page names nobody.
    client.contact(life.signal).then(setContact, () => undefined);
    return () => life.abort();
  }, [client]);

  const signIn = useCallback(
    (given: string | null, onDevice = false) => {
      if (given) KEEPING.keep(given, onDevice);
      else KEEPING.forget();
      if (given === token) void queries.resetQueries({ queryKey: etlKeys.all(client) });
      setSignedOut(null);
      setToken(given);
    },
    [queries, client, token],
  );

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
  if (session.data) {
    const forget = token === null ? null : () => signIn(null);
    return (
      <ContactContext.Provider value={contact}>
        <Dashboard client={client} session={session.data} onForget={forget} onSignedOut={setSignedOut} />
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
