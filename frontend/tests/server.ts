import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, beforeEach } from "vitest";

export interface Asked {
  route: string;
  path: string;
  headers: IncomingHttpHeaders;
  body: string;
}

export type Answer = (response: ServerResponse, asked: Asked) => void | Promise<void>;

/** Answers with JSON. */
export function json(status: number, body: unknown, headers: Record<string, string> = {}): Answer {
  return (response) => {
    response.writeHead(status, { "Content-Type": "application/json", ...headers });
    response.end(JSON.stringify(body));
  };
}

/** Sends server-sent events in the given pieces of text; leaves the connection open unless `end`. */
export function stream(pieces: string[], { end = false } = {}): Answer {
  return async (response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream; charset=utf-8" });
    for (const piece of pieces) {
      response.write(piece);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    if (end) response.end();
  };
}

export function event(name: string, data: unknown): string {
  return `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`;
}

/** A server on a free port. Each route has its answers in turn; the last one stays. */
export class TestServer {
  readonly asked: Asked[] = [];
  url = "";
  /** Connections that the other side gave up before they were answered in full. */
  dropped = 0;
  readonly #answers = new Map<string, Answer[]>();
  readonly #server = createServer(async (request, response) => {
    let body = "";
    try {
      for await (const piece of request) body += piece;
    } catch {
      return; // The other side went away.
    }
    const path = request.url ?? "";
    const asked = { route: `${request.method} ${path.split("?")[0]}`, path, headers: request.headers, body };
    this.asked.push(asked);
    response.on("close", () => {
      if (!response.writableFinished) this.dropped += 1;
    });
    const answers = this.#answers.get(asked.route) ?? [json(404, { detail: `nothing at ${asked.route}` })];
    const answer = answers.length > 1 ? answers.shift() : answers[0];
    await answer?.(response, asked);
  });

  on(route: string, ...answers: Answer[]): void {
    this.#answers.set(route, answers);
  }

  count(route: string): number {
    return this.asked.filter((one) => one.route === route).length;
  }

  async start(): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    this.url = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** A server for each test. */
export function testServer(): { current: TestServer } {
  const holder = { current: new TestServer() };
  beforeEach(async () => {
    holder.current = new TestServer();
    await holder.current.start();
  });
  afterEach(() => holder.current.stop());
  return holder;
}

export function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Hides the tab, or shows it. */
export function show(visibility: "visible" | "hidden"): void {
  Object.defineProperty(document, "visibilityState", { configurable: true, value: visibility });
  document.dispatchEvent(new Event("visibilitychange", { bubbles: true }));
}
