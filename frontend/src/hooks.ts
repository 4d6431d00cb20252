import {
  createContext,
  createElement,
  type ReactNode,
  useCallback,
  useContext,
  useEffect,
  useRef,
  useState,
} from "react";
import { createClient, type ETLClient } from "./client.js";
import { asETLError, ETLError } from "./errors.js";
import { applyEvent, type Connection } from "./events.js";
import { failure, follow } from "./follow.js";
import type { Transport } from "./transport.js";
import type { Refresh, Status } from "./types.js";
import { wait } from "./wait.js";

const Context = createContext<Transport | null>(null);
let sameOrigin: ETLClient | undefined;

/** Gives the hooks below it their client. Without a provider they ask the page's own origin, without a token. */
export function ETLProvider({ client, children }: { client: Transport; children?: ReactNode }) {
  return createElement(Context.Provider, { value: client }, children);
}

function useTransport(): Transport {
  const given = useContext(Context);
  if (given) return given;
  sameOrigin ??= createClient();
  return sameOrigin;
}

export interface ETLRefresh {
  /**
   * Asks for a refresh of the named tables, or of the dashboard's tables, and watches it. `force` also refreshes fresh tables.
   * Resolves with the final state, or with null if it is not known. Never rejects: `error` has the error.
   */
  triggerRefresh: (force?: boolean, tables?: string[]) => Promise<Refresh | null>;
  isRefreshing: boolean;
  /** How far the refresh is, and its final state. Null before the first refresh. */
  progress: Refresh | null;
  /** Why the refresh was not launched, can't be watched now, or failed. */
  error: ETLError | null;
}

type RefreshState = Omit<ETLRefresh, "triggerRefresh">;

/** Asks for refreshes, and looks at the last one every `intervalMs` milliseconds. */
export function useETLRefresh(intervalMs = 1000): ETLRefresh {
  const transport = useTransport();
  const [state, setState] = useState<RefreshState>({ isRefreshing: false, progress: null, error: null });
  const life = useRef<AbortController | null>(null);
  const watching = useRef<AbortController | null>(null);

  // biome-ignore lint/correctness/useExhaustiveDependencies: another transport is another life
  useEffect(() => {
    const own = new AbortController();
    life.current = own;
    return () => {
      own.abort();
      watching.current?.abort();
      watching.current = null;
    };
  }, [transport]);

  const triggerRefresh = useCallback(
    async (force?: boolean, tables?: string[]): Promise<Refresh | null> => {
      const alive = life.current?.signal;
      if (!alive || alive.aborted) return null;
      const change = (to: Partial<RefreshState>) => setState((state) => ({ ...state, ...to }));
      change({ isRefreshing: true, error: null });
      let launched: Refresh;
      try {
        // As an onClick handler this function receives an event, and an event is truthy.
        launched = await transport.launch({ force: force === true, tables }, alive);
      } catch (error) {
        if (!alive.aborted) change({ isRefreshing: watching.current !== null, error: asETLError(error) });
        return null;
      }
      if (alive.aborted) return null;
      watching.current?.abort();
      const watch = new AbortController();
      watching.current = watch;
      change({ progress: launched });
      let outcome: { end: Refresh | null; error: ETLError | null };
      try {
        const end = await follow(transport, launched, {
          signal: watch.signal,
          intervalMs,
          onProgress: (progress) => change({ progress, error: null }),
          onTrouble: (error) => change({ error }),
        });
        outcome = { end, error: failure(end) };
      } catch (error) {
        outcome = { end: null, error: asETLError(error) };
      }
      if (watch.signal.aborted) return null;
      watching.current = null;
      change({ isRefreshing: false, error: outcome.error });
      return outcome.end;
    },
    [transport, intervalMs],
  );
  return { triggerRefresh, ...state };
}

export interface ETLStatus {
  /** The last known state. Null before the first answer. Errors do not clear it. */
  status: Status | null;
  error: ETLError | null;
  /** Whether the first answer, or the answer to a `refetch`, has not come yet. */
  isLoading: boolean;
  /** Asks at once. */
  refetch: () => void;
}

/** The state of all tables, asked for every `intervalMs`. */
export function useETLStatus(intervalMs = 30_000): ETLStatus {
  const transport = useTransport();
  const [state, setState] = useState<Omit<ETLStatus, "refetch">>({ status: null, error: null, isLoading: true });
  const [round, setRound] = useState(0);

  // biome-ignore lint/correctness/useExhaustiveDependencies: a new round asks at once
  useEffect(() => {
    const life = new AbortController();
    async function look(): Promise<number> {
      try {
        const status = await transport.status(life.signal);
        if (!life.signal.aborted) setState({ status, error: null, isLoading: false });
        return intervalMs;
      } catch (thrown) {
        const error = asETLError(thrown);
        if (!life.signal.aborted) setState((state) => ({ ...state, error, isLoading: false }));
        return error.retryAfter === null ? intervalMs : error.retryAfter * 1000;
      }
    }
    async function run(): Promise<void> {
      while (!life.signal.aborted) await wait(await look(), life.signal);
    }
    void run();
    return () => life.abort();
  }, [transport, intervalMs, round]);

  const refetch = useCallback(() => {
    setState((state) => ({ ...state, isLoading: true }));
    setRound((round) => round + 1);
  }, []);
  return { ...state, refetch };
}

export interface ETLEvents {
  status: Status | null;
  error: ETLError | null;
  connection: Connection;
  /** When the API last gave a sign of life, in milliseconds since 1970 by this machine's clock. */
  heardAt: number;
  /** How many tries in a row to hear of it have failed since. */
  missed: number;
}

/** The state of all tables as it changes, by the events of the HTTP client. Until the first event, it is `initial`. */
export function useETLEvents(client: ETLClient, initial: Status | null = null): ETLEvents {
  const [state, setState] = useState<ETLEvents>(() => ({
    status: initial,
    error: null,
    connection: "connecting",
    heardAt: Date.now(),
    missed: 0,
  }));
  useEffect(
    () =>
      client.events({
        onEvent: (event) =>
          setState((state) => ({
            ...state,
            status: applyEvent(state.status, event),
            error:
              event.type === "unavailable"
                ? new ETLError(event.message, 503, null, { failure: event.failure ?? null })
                : null,
          })),
        onConnection: (connection) => setState((state) => ({ ...state, connection })),
        onSignal: () => setState((state) => ({ ...state, heardAt: Date.now(), missed: 0 })),
        // An error that the API itself tells is a sign of life too.
        onError: (error) =>
          setState((state) =>
            error.failure
              ? { ...state, error, heardAt: Date.now(), missed: 0 }
              : { ...state, error, missed: state.missed + 1 },
          ),
      }),
    [client],
  );
  return state;
}
