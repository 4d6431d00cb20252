import { createParser } from "eventsource-parser";
import { asETLError, ETLError, refusal } from "./errors.js";
import type { Failure, Fault, Status, TableStatus } from "./types.js";
import { backOff, wait } from "./wait.js";

/** What the API tells while one listens: the whole state, one table that changed alone, or that PostgreSQL is away. */
export type StatusEvent =
  | { type: "status"; status: Status }
  | { type: "table"; table: TableStatus }
  | { type: "unavailable"; message: string; failure?: Failure | null };

/** `live`: events come as things happen. `polling`: they don't come through, and the state is asked for from time to time. */
export type Connection = "connecting" | "live" | "reconnecting" | "polling" | "closed";

export interface Listening {
  onEvent(event: StatusEvent): void;
  onConnection?(connection: Connection): void;
  /** The API gave a sign of life: something came over the connection, or an answer came while it is polled. */
  onSignal?(): void;
  /** What went wrong. After an error that does not pass, such as a refused token, listening has ended (`closed`). */
  onError?(error: ETLError): void;
  /** Milliseconds before the first try to connect again; doubled at each further one, up to 30 s. */
  reconnectMs?: number;
  /** Milliseconds of silence after which a connection is taken for dead. The API says something every 15 s. */
  silenceMs?: number;
  /** Failed tries in a row after which the state is asked for at each try. */
  pollAfter?: number;
}

/** The state after an event. */
export function applyEvent(status: Status | null, event: StatusEvent): Status | null {
  if (event.type === "status") return event.status;
  if (event.type === "unavailable" || status === null) return status;
  return { ...status, tables: status.tables.map((table) => (table.table === event.table.table ? event.table : table)) };
}

/**
 * Reads server-sent events with `fetch`, since EventSource can't send a token. Connects again when the connection ends, and polls
 * while that does not help. Returns a function that ends it.
 */
export function listen(
  open: (signal: AbortSignal) => Promise<Response>,
  poll: (signal: AbortSignal) => Promise<Status>,
  { onEvent, onConnection, onSignal, onError, reconnectMs = 1000, silenceMs = 40_000, pollAfter = 3 }: Listening,
): () => void {
  const life = new AbortController();
  let connection: Connection | null = null;
  let failures = 0;

  function tell(now: Connection): void {
    if (now !== connection && !life.signal.aborted) onConnection?.(now);
    connection = now;
  }

  function heard(): void {
    if (!life.signal.aborted) onSignal?.();
  }

  /** Reports what was thrown, and gives it as an ETLError. */
  function fail(thrown: unknown): ETLError {
    const error = asETLError(thrown);
    if (!life.signal.aborted) onError?.(error);
    return error;
  }

  async function attempt(): Promise<ETLError> {
    try {
      await read(open, silenceMs, life.signal, heard, (event) => {
        if (life.signal.aborted) return;
        failures = 0;
        tell("live");
        onEvent(event);
      });
      return new ETLError("the connection has ended");
    } catch (thrown) {
      return fail(thrown);
    }
  }

  async function run(): Promise<void> {
    tell("connecting");
    while (!life.signal.aborted) {
      const error = await attempt();
      if (!error.passes) return tell("closed");
      failures += 1;
      tell(failures < pollAfter ? "reconnecting" : "polling");
      if (failures >= pollAfter) {
        try {
          const status = await poll(life.signal);
          heard();
          onEvent({ type: "status", status });
        } catch (thrown) {
          fail(thrown);
        }
      }
      await wait(backOff(failures, reconnectMs, error.retryAfter), life.signal);
    }
  }

  void run();
  return () => life.abort();
}

/** Reads one connection to its end. Rejects where it is refused, broken or silent for too long. */
async function read(
  open: (signal: AbortSignal) => Promise<Response>,
  silenceMs: number,
  signal: AbortSignal,
  onSignal: () => void,
  onEvent: (event: StatusEvent) => void,
): Promise<void> {
  const own = new AbortController();
  const end = () => own.abort();
  signal.addEventListener("abort", end);
  let timer = setTimeout(end, silenceMs);
  const parser = createParser({
    onEvent: ({ event, data }) => {
      const told = parse(event, data);
      if (told) onEvent(told);
    },
  });
  try {
    const response = await open(own.signal);
    if (!response.ok) throw refusal(response, await response.json().catch(() => null));
    if (!response.body || !response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
      throw new ETLError("the answer is no stream of events");
    }
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(end, silenceMs);
      onSignal();
      parser.feed(decoder.decode(value, { stream: true }));
    }
  } catch (error) {
    throw own.signal.aborted && !signal.aborted ? new ETLError("the connection is silent") : error;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", end);
    own.abort();
  }
}

function parse(name: string | undefined, data: string): StatusEvent | null {
  switch (name) {
    case "status":
      return { type: "status", status: JSON.parse(data) as Status };
    case "table":
      return { type: "table", table: JSON.parse(data) as TableStatus };
    case "unavailable":
      return unavailable(JSON.parse(data) as Fault);
    default:
      return null;
  }
}

function unavailable({ detail, failure }: Fault): StatusEvent {
  return { type: "unavailable", message: detail, failure };
}
