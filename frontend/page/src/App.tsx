import { QueryClient, QueryClientProvider, queryOptions, useQuery, useQueryClient } from "@tanstack/react-query";
import { useCallback, useEffect, useMemo, useState } from "react";
import { createRoot } from "react-dom/client";
import { type Contact, createClient, type ETLClient, type ETLError, etlKeys, type Session } from "../../src";
import { ContactContext } from "./contact";
import { Dashboard } from "./Dashboard";
import { Explained } from "./Explained";
import { HERE, KEEPING, takeToken } from "./here";
import { TokenForm } from "./TokenForm";
import { explainNothing } from "./words";

const RETRY_MS = 5000;

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

interface Props {
  /** The token at the start; null without one. */
  known: string | null;
  request: typeof fetch;
}

/** Shows the page in `root`. */
export function start(root: HTMLElement, known: string | null, request: typeof fetch): void {
  createRoot(root).render(
    <QueryClientProvider client={new QueryClient()}>
      <App known={known} request={request} />
    </QueryClientProvider>,
  );
}

/** Finds out who the user is, asks for a token if one is needed, and shows the tables. */
function App({ known, request }: Props) {
  const [token, setToken] = useState(known);
  const client = useMemo(() => createClient({ baseUrl: HERE.href, token, fetch: request }), [token, request]);
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
