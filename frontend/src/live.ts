import type { QueryClient } from "@tanstack/react-query";
import { compare, readRowsAgain } from "./changes.js";
import type { ETLClient } from "./client.js";
import { ETLError } from "./errors.js";
import { applyEvent, type Connection, type StatusEvent } from "./events.js";
import { etlKeys } from "./keys.js";
import type { Status } from "./types.js";

export interface Signals {
  error: ETLError | null;
  connection: Connection;
  /** When the API last gave a sign of life, in milliseconds since 1970 by this machine's clock. */
  heardAt: number;
  /** How many tries in a row to hear of it have failed since. */
  missed: number;
}

const streams = new WeakMap<QueryClient, Map<string, Live>>();

/** The one stream of events for all components that keep what they read in `queries`. */
export function liveOf(queries: QueryClient, client: ETLClient): Live {
  const known = streams.get(queries) ?? new Map<string, Live>();
  streams.set(queries, known);
  const key = JSON.stringify(etlKeys.all(client));
  const found = known.get(key) ?? new Live(queries, client);
  known.set(key, found);
  return found;
}

/**
 * Listens to a client's events while somebody is interested. What they tell of the tables goes to the queries: the state is kept, and
 * what has changed is read again.
 */
export class Live {
  #signals: Signals = { error: null, connection: "connecting", heardAt: Date.now(), missed: 0 };
  /** Whether an event has come over the stream. From then on each change of rows is told with its days. */
  #streamed = false;
  #close: (() => void) | null = null;
  readonly #listeners = new Set<() => void>();

  constructor(
    private readonly queries: QueryClient,
    private readonly client: ETLClient,
  ) {}

  readonly current = (): Signals => this.#signals;

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    if (!this.#close) this.#open();
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size > 0) return;
      this.#close?.();
      this.#close = null;
    };
  };

  #open(): void {
    this.#streamed = false;
    this.#change({ error: null, connection: "connecting", heardAt: Date.now(), missed: 0 });
    this.#close = this.client.events({
      onEvent: (event) => this.#heed(event),
      onConnection: (connection) => this.#change({ connection }),
      onSignal: () => this.#change({ heardAt: Date.now(), missed: 0 }),
      // An error that the API itself tells is a sign of life too.
      onError: (error) =>
        this.#change(
          error.failure ? { error, heardAt: Date.now(), missed: 0 } : { error, missed: this.#signals.missed + 1 },
        ),
    });
  }

  #heed(event: StatusEvent): void {
    const { queries, client } = this;
    const key = etlKeys.status(client);
    if (event.type === "data") readRowsAgain(queries, client, event);
    const status = applyEvent(queries.getQueryData<Status>(key) ?? null, event);
    if (status && (event.type === "status" || event.type === "table")) {
      const changed = compare(queries, client, status);
      const live = this.#signals.connection === "live";
      if (!(live && this.#streamed)) for (const table of changed) readRowsAgain(queries, client, { table, days: null });
      this.#streamed ||= live;
      // An answer that is still under way is older than the event.
      void queries.cancelQueries({ queryKey: key });
      queries.setQueryData(key, status);
    }
    this.#change({ error: event.type === "unavailable" ? unavailable(event) : null });
  }

  #change(to: Partial<Signals>): void {
    this.#signals = { ...this.#signals, ...to };
    for (const listener of this.#listeners) listener();
  }
}

function unavailable({ message, failure }: StatusEvent & { type: "unavailable" }): ETLError {
  return new ETLError(message, 503, null, { failure: failure ?? null });
}
