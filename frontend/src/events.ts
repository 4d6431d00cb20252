import { createParser } from "eventsource-parser";
import { asETLError, ETLError, refusal } from "./errors.js";
import type { Failure, Fault, Status, TableStatus } from "./types.js";
import { backOff, shown, wait } from "./wait.js";

/** The API's events: the whole state, one table that changed alone, or the fact that PostgreSQL is away. */
export type StatusEvent =
  | { type: "status"; status: Status }
  | { type: "table"; table: TableStatus }
  | { type: "unavailable"; message: string; failure?: Failure | null }
  | ({ type: "data" } & DataChange);

/** Rows of a table have changed, on these days (`2026-11-25`, or `2026-11-19..2026-11-25`); on any day where `days` is null. */
export interface DataChange {
  table: string;
  data_version: number;
  days: string[] | null;
}

/** `live`: events arrive as things happen. `polling`: no events arrive, and the client asks for the state from time to time. */
export type Connection = "connecting" | "live" | "reconnecting" | "polling" | "closed";

export interface Listening {
  onEvent(event: StatusEvent): void;
  onConnection?(connection: Connection): void;
  /** The API gave a sign of life: something came over the connection, or an answer came while it is polled. */
  onSignal?(): void;
  /** What went wrong. After an error that does not pass, such as a refused token, listening has ended (`closed`). */
  onError?(error: ETLError): void;
  /** Milliseconds before the first try to connect again. Each further wait is twice as long, up to 30 s. */
  reconnectMs?: number;
  /** After this many milliseconds of silence the connection counts as dead. The API sends something every 15 s. */
  silenceMs?: number;
  /** After this many failed tries in a row, each try also asks for the state. */
  pollAfter?: number;
}

/** The state after an event. */
export function applyEvent(status: Status | null, event: StatusEvent): Status | null {
  if (event.type === "status") return event.status;
  if (event.type !== "table" || status === null) return status;
  return { ...status, tables: status.tables.map((table) => (table.table === event.table.table ? event.table : table)) };
}

/**
 * Reads server-sent events with `fetch`, because EventSource can't send a token. When the connection ends, it connects again. While
 * no connection succeeds, it polls, unless the tab is hidden. Returns a function that ends it.
 */
export function listen(
  open: (signal: AbortSignal, lastEventId: string) => Promise<Response>,
  poll: (signal: AbortSignal) => Promise<Status>,
  { onEvent, onConnection, onSignal, onError, reconnectMs = 1000, silenceMs = 40_000, pollAfter = 3 }: Listening,
): () => void {
  const life = new AbortController();
  let connection: Connection | null = null;
  let failures = 0;
  // With it, the API tells after a break what was missed.
  let lastEventId = "";

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
      const again = (signal: AbortSignal) => open(signal, lastEventId);
      await read(again, silenceMs, life.signal, heard, (event, id) => {
        if (life.signal.aborted) return;
        lastEventId = id ?? lastEventId;
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
      await shown(life.signal);
    }
  }

  void run();
  return () => life.abort();
}

/** Reads one connection to its end. Rejects if it is refused, broken, or silent for too long. */
async function read(
  open: (signal: AbortSignal) => Promise<Response>,
  silenceMs: number,
  signal: AbortSignal,
  onSignal: () => void,
  onEvent: (event: StatusEvent, id: string | undefined) => void,
): Promise<void> {
  const own = new AbortController();
  const end = () => own.abort();
  signal.addEventListener("abort", end);
  let timer = setTimeout(end, silenceMs);
  const parser = createParser({
    onEvent: ({ event, data, id }) => {
      const told = parse(event, data);
      if (told) onEvent(told, id);
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
    case "data":
      return { type: "data", ...(JSON.parse(data) as DataChange) };
    case "unavailable":
      return unavailable(JSON.parse(data) as Fault);
    default:
      return null;
  }
}

function unavailable({ detail, failure }: Fault): StatusEvent {
  return { type: "unavailable", message: detail, failure };
}
