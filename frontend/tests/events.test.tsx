import { renderHook, waitFor } from "@testing-library/react";
import { describe, expect, it } from "vitest";
import { type Connection, createClient, type ETLError, type Listening, type StatusEvent, useETLEvents } from "../src";
import { status, tableStatus } from "./samples";
import { event, json, sleep, stream, testServer } from "./server";

const EVENTS = "GET /api/v1/etl/events";
const STATUS = "GET /api/v1/etl/status";
const server = testServer();

function listen(more: Partial<Listening> = {}) {
  const told = { events: [] as StatusEvent[], connections: [] as Connection[], errors: [] as ETLError[] };
  const client = createClient({ baseUrl: server.current.url, token: "t0ken" });
  const close = client.events({
    onEvent: (event) => told.events.push(event),
    onConnection: (connection) => told.connections.push(connection),
    onError: (error) => told.errors.push(error),
    reconnectMs: 10,
    ...more,
  });
  return { ...told, close };
}

describe("events", () => {
  it("are read however the network cuts them, with the token", async () => {
    const text = `: ping\r\n\r\n${event("status", status())}${event("table", tableStatus({ description: "Cobranza día" }))}${event("other", 1)}`;
    const middle = Math.floor(text.length / 2);
    server.current.on(EVENTS, stream([text.slice(0, 13), text.slice(13, middle), text.slice(middle)]));
    const { events, connections, close } = listen();
    await waitFor(() => expect(events).toHaveLength(2));
    expect(events[0]).toMatchObject({ type: "status", status: { total_tables: 2 } });
    expect(events[1]).toMatchObject({ type: "table", table: { description: "Cobranza día" } });
    expect(connections).toEqual(["connecting", "live"]);
    expect(server.current.asked[0]?.headers.authorization).toBe("Bearer t0ken");
    close();
    await waitFor(() => expect(server.current.dropped).toBe(1));
    await sleep(50);
    expect(server.current.count(EVENTS)).toBe(1);
  });

  it("go on over a new connection when the first one ends", async () => {
    server.current.on(
      EVENTS,
      stream([event("status", status({ running: 1 }))], { end: true }),
      stream([event("status", status({ running: 2 }))]),
    );
    const { events, connections, close } = listen();
    await waitFor(() => expect(events).toHaveLength(2));
    expect(connections).toEqual(["connecting", "live", "reconnecting", "live"]);
    close();
  });

  it("go on over a new connection when the first one is silent", async () => {
    server.current.on(EVENTS, stream([event("status", status())]), stream([event("status", status({ running: 2 }))]));
    const { events, errors, close } = listen({ silenceMs: 60 });
    await waitFor(() => expect(events.length).toBeGreaterThan(1));
    expect(errors[0]).toMatchObject({ message: "the connection is silent" });
    close();
  });

  it("are replaced by polling while no stream comes through, and take over again", async () => {
    server.current.on(EVENTS, json(503, { detail: "away" }));
    server.current.on(STATUS, json(200, status({ running: 7 })));
    const { events, connections, close } = listen();
    await waitFor(() => expect(events.length).toBeGreaterThan(0));
    expect(events[0]).toMatchObject({ type: "status", status: { running: 7 } });
    expect(connections).toEqual(["connecting", "reconnecting", "polling"]);
    server.current.on(EVENTS, stream([event("status", status({ running: 8 }))]));
    await waitFor(() => expect(events.at(-1)).toMatchObject({ status: { running: 8 } }));
    expect(connections.at(-1)).toBe("live");
    close();
  });

  it("end where the token is refused", async () => {
    server.current.on(EVENTS, json(401, { detail: "a token is needed" }));
    const { connections, errors } = listen();
    await waitFor(() => expect(connections.at(-1)).toBe("closed"));
    expect(errors).toMatchObject([{ status: 401 }]);
    await sleep(60);
    expect(server.current.count(EVENTS)).toBe(1);
  });

  it("change the state that a component shows, and tell when PostgreSQL is away", async () => {
    const failed = tableStatus({ status: "failed", error: "PostgreSQL is away" });
    const pieces = [
      event("status", status()),
      event("table", failed),
      event("unavailable", { detail: "PostgreSQL does not answer" }),
    ];
    server.current.on(EVENTS, stream(pieces));
    const client = createClient({ baseUrl: server.current.url });
    const { result, unmount } = renderHook(() => useETLEvents(client));
    await waitFor(() =>
      expect(result.current.error).toMatchObject({ status: 503, message: "PostgreSQL does not answer" }),
    );
    expect(result.current.status?.tables.map((table) => table.status)).toEqual(["failed", "success"]);
    unmount();
    await waitFor(() => expect(server.current.dropped).toBe(1));
  });

  it("count the tries that nobody answers, and take every answer of the API for a sign of life", async () => {
    const away = { detail: "PostgreSQL does not answer", failure: { cause: "destination_unavailable" } };
    server.current.on(
      EVENTS,
      json(502, "no json"),
      json(503, away),
      stream([event("status", status()), event("unavailable", away)]),
    );
    const client = createClient({ baseUrl: server.current.url });
    const quick = { ...client, events: (told: Listening) => client.events({ ...told, reconnectMs: 300 }) };
    const before = Date.now();
    const { result, unmount } = renderHook(() => useETLEvents(quick));
    await waitFor(() => expect(result.current.missed).toBe(1));
    await waitFor(() => expect(result.current.status).not.toBeNull());
    await waitFor(() => expect(result.current.error?.failure?.cause).toBe("destination_unavailable"));
    expect(result.current.missed).toBe(0);
    expect(result.current.heardAt).toBeGreaterThanOrEqual(before);
    unmount();
  });

  it("come back with the id of the last one, and hear which days have changed", async () => {
    const change = { table: "dashboard_data", data_version: 8, days: ["2026-11-19..2026-11-25"] };
    server.current.on(
      EVENTS,
      stream([`id: dashboard_data=7\n${event("status", status())}`], { end: true }),
      stream([event("status", status()), event("data", change)]),
    );
    const { events, close } = listen();
    await waitFor(() => expect(events).toHaveLength(3));
    expect(events[2]).toEqual({ type: "data", ...change });
    const sent = server.current.asked
      .filter(({ route }) => route === EVENTS)
      .map(({ headers }) => headers["last-event-id"]);
    expect(sent).toEqual([undefined, "dashboard_data=7"]);
    close();
  });
});
