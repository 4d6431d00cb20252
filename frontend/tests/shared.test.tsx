import { act, renderHook, waitFor } from "@testing-library/react";
import type { ReactNode } from "react";
import { afterEach, describe, expect, it } from "vitest";
import { createClient, ETLProvider, useETLEvents, useETLRefresh, useETLStatus } from "../src";
import { refresh, status } from "./samples";
import { event, json, show, sleep, stream, testServer } from "./server";

const STATUS = "GET /api/v1/etl/status";
const EVENTS = "GET /api/v1/etl/events";
const LAUNCH = "POST /api/v1/etl/refresh/dashboard";
const LOOK = "GET /api/v1/etl/refresh/p1";
const server = testServer();

function render<T>(hook: () => T, token?: string) {
  const client = createClient({ baseUrl: server.current.url, token });
  const wrapper = ({ children }: { children: ReactNode }) => <ETLProvider client={client}>{children}</ETLProvider>;
  return renderHook(hook, { wrapper });
}

afterEach(() => show("visible"));

describe("two components", () => {
  it("share one request for the state, and one each time after", async () => {
    server.current.on(STATUS, json(200, status()));
    const both = () => [useETLStatus(100), useETLStatus(100)];
    const { result } = render(both);
    await waitFor(() => expect(result.current[1]?.status).not.toBeNull());
    expect(result.current[0]?.status).toBe(result.current[1]?.status);
    expect(server.current.count(STATUS)).toBe(1);
    await sleep(650);
    expect(server.current.count(STATUS)).toBeGreaterThan(2);
    expect(server.current.count(STATUS)).toBeLessThan(9);
  });

  it("share one stream of events", async () => {
    server.current.on(EVENTS, stream([event("status", status({ running: 4 }))]));
    const client = createClient({ baseUrl: server.current.url });
    const { result } = renderHook(() => [useETLEvents(client), useETLEvents(client)]);
    await waitFor(() => expect(result.current.map(({ status }) => status?.running)).toEqual([4, 4]));
    expect(server.current.count(EVENTS)).toBe(1);
  });

  it("are told of the state by the events, without a request", async () => {
    server.current.on(STATUS, json(200, status({ running: 0 })));
    server.current.on(EVENTS, stream([event("status", status({ running: 4 }))]));
    const client = createClient({ baseUrl: server.current.url });
    const wrapper = ({ children }: { children: ReactNode }) => <ETLProvider client={client}>{children}</ETLProvider>;
    const { result } = renderHook(() => ({ events: useETLEvents(client), asked: useETLStatus() }), { wrapper });
    await waitFor(() => expect(result.current.asked.status?.running).toBe(4));
    expect(server.current.count(STATUS)).toBeLessThan(2);
  });
});

describe("a refused token", () => {
  it.each([401, 403])("ends the asking for the state (%d), also when the tab is shown again", async (code) => {
    server.current.on(STATUS, json(code, { detail: "no" }));
    const { result, unmount } = render(() => useETLStatus(10), "old");
    await waitFor(() => expect(result.current).toMatchObject({ error: { status: code }, isLoading: false }));
    await sleep(300);
    show("hidden");
    show("visible");
    await sleep(50);
    expect(server.current.count(STATUS)).toBe(1);
    act(() => result.current.refetch());
    await waitFor(() => expect(server.current.count(STATUS)).toBe(2));
    unmount();
    // Another token asks, and is not told what the old one was.
    server.current.on(STATUS, json(200, status()));
    const { result: other } = render(() => useETLStatus(10), "new");
    expect(other.current).toMatchObject({ error: null, isLoading: true });
    await waitFor(() => expect(other.current.status).not.toBeNull());
  });
});

describe("a hidden tab", () => {
  it("does not ask for the state, and asks when it is shown", async () => {
    server.current.on(STATUS, json(200, status()));
    const { result } = render(() => useETLStatus(20));
    await waitFor(() => expect(result.current.status).not.toBeNull());
    show("hidden");
    await sleep(50);
    const asked = server.current.count(STATUS);
    await sleep(250);
    expect(server.current.count(STATUS)).toBe(asked);
    show("visible");
    await waitFor(() => expect(server.current.count(STATUS)).toBeGreaterThan(asked));
  });

  it("does not look at a refresh, and sees its end when it is shown", async () => {
    server.current.on(LAUNCH, json(202, refresh({ dashboard_data: "running" })));
    server.current.on(LOOK, json(200, refresh({ dashboard_data: "running" })));
    const { result } = render(() => useETLRefresh(20));
    act(() => void result.current.triggerRefresh());
    await waitFor(() => expect(server.current.count(LOOK)).toBeGreaterThan(0));
    show("hidden");
    await sleep(50);
    const looks = server.current.count(LOOK);
    server.current.on(LOOK, json(200, refresh({ dashboard_data: "success" })));
    await sleep(250);
    expect(server.current.count(LOOK)).toBe(looks);
    expect(result.current.isRefreshing).toBe(true);
    show("visible");
    await waitFor(() => expect(result.current).toMatchObject({ isRefreshing: false, progress: { status: "success" } }));
  });

  it("does not try to connect again, nor ask in place of events, until it is shown", async () => {
    server.current.on(EVENTS, json(503, { detail: "away" }));
    server.current.on(STATUS, json(200, status()));
    const close = createClient({ baseUrl: server.current.url }).events({ onEvent: () => undefined, reconnectMs: 10 });
    await waitFor(() => expect(server.current.count(STATUS)).toBeGreaterThan(0));
    show("hidden");
    await sleep(400);
    const asked = server.current.asked.length;
    await sleep(900);
    expect(server.current.asked.length).toBe(asked);
    show("visible");
    await waitFor(() => expect(server.current.asked.length).toBeGreaterThan(asked));
    close();
  });
});

describe("a refresh under way", () => {
  it("is found again after its component was unmounted, by another one with a client of its own", async () => {
    server.current.on(LAUNCH, json(202, refresh({ dashboard_data: "running" })));
    server.current.on(LOOK, json(200, refresh({ dashboard_data: "running" })));
    const first = render(() => useETLRefresh(20));
    act(() => void first.result.current.triggerRefresh(true));
    await waitFor(() => expect(server.current.count(LOOK)).toBeGreaterThan(0));
    first.unmount();
    await sleep(60);
    const looks = server.current.count(LOOK);
    await sleep(100);
    expect(server.current.count(LOOK)).toBe(looks);
    const { result } = render(() => useETLRefresh(20));
    expect(result.current).toMatchObject({ isRefreshing: true, progress: { pipeline_id: "p1", status: "running" } });
    await waitFor(() => expect(server.current.count(LOOK)).toBeGreaterThan(looks));
    server.current.on(LOOK, json(200, refresh({ dashboard_data: "success" })));
    await waitFor(() => expect(result.current).toMatchObject({ isRefreshing: false, progress: { status: "success" } }));
    expect(server.current.count(LAUNCH)).toBe(1);
  });

  it("is found again if the launch was not answered yet", async () => {
    let answer: () => void = () => undefined;
    server.current.on(LAUNCH, (response, asked) => {
      answer = () => void json(202, refresh({ dashboard_data: "running" }))(response, asked);
    });
    server.current.on(LOOK, json(200, refresh({ dashboard_data: "running" })));
    const first = render(() => useETLRefresh(20));
    act(() => void first.result.current.triggerRefresh(true));
    await waitFor(() => expect(server.current.count(LAUNCH)).toBe(1));
    first.unmount();
    const { result } = render(() => useETLRefresh(20));
    expect(result.current).toMatchObject({ isRefreshing: true, progress: null });
    answer();
    await waitFor(() => expect(result.current).toMatchObject({ isRefreshing: true, progress: { pipeline_id: "p1" } }));
    expect(server.current.count(LAUNCH)).toBe(1);
  });

  it("is not shown by a component beside the one that watches it", async () => {
    server.current.on(LAUNCH, json(202, refresh({ dashboard_data: "running" })));
    server.current.on(LOOK, json(200, refresh({ dashboard_data: "running" })));
    const { result } = render(() => [useETLRefresh(20), useETLRefresh(20)]);
    act(() => void result.current[0]?.triggerRefresh());
    await waitFor(() => expect(server.current.count(LOOK)).toBeGreaterThan(0));
    expect(result.current.map(({ isRefreshing }) => isRefreshing)).toEqual([true, false]);
  });
});
