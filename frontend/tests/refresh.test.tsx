import { act, renderHook, waitFor } from "@testing-library/react";
import type { ReactNode } from "react";
import { describe, expect, it } from "vitest";
import { createClient, ETLProvider, useETLRefresh } from "../src";
import { refresh } from "./samples";
import { json, sleep, testServer } from "./server";

const LAUNCH = "POST /api/v1/etl/refresh/dashboard";
const LOOK = "GET /api/v1/etl/refresh/p1";
const server = testServer();

function hook() {
  const client = createClient({ baseUrl: server.current.url });
  const wrapper = ({ children }: { children: ReactNode }) => <ETLProvider client={client}>{children}</ETLProvider>;
  return renderHook(() => useETLRefresh(10), { wrapper });
}

function reason(message: string) {
  const failed = refresh({ dashboard_data: "success", assignment_data: "failed" });
  return { ...failed, runs: { ...failed.runs, assignment_data: { ...failed.runs.assignment_data, message } } };
}

describe("useETLRefresh", () => {
  it("launches, tells how far the refresh is, and ends with it", async () => {
    server.current.on(LAUNCH, json(202, refresh({ dashboard_data: "queued" })));
    const running = {
      ...refresh({ dashboard_data: "running" }),
      runs: { dashboard_data: { table: "dashboard_data", state: "running", rows: 75 } },
    };
    server.current.on(LOOK, json(200, running));
    const { result } = hook();
    expect(result.current).toMatchObject({ isRefreshing: false, progress: null, error: null });
    let ended: Promise<unknown> = Promise.resolve();
    act(() => {
      ended = result.current.triggerRefresh(true, ["dashboard_data"]);
    });
    expect(result.current.isRefreshing).toBe(true);
    await waitFor(() => expect(result.current.progress?.runs.dashboard_data?.rows).toBe(75));
    expect(result.current.isRefreshing).toBe(true);
    server.current.on(LOOK, json(200, refresh({ dashboard_data: "success" })));
    await waitFor(() => expect(result.current.isRefreshing).toBe(false));
    expect(result.current).toMatchObject({ progress: { status: "success" }, error: null });
    expect(await ended).toMatchObject({ status: "success" });
    expect(JSON.parse(server.current.asked[0]?.body ?? "")).toMatchObject({ force: true, tables: ["dashboard_data"] });
    const looks = server.current.count(LOOK);
    await sleep(60);
    expect(server.current.count(LOOK)).toBe(looks);
  });

  it("gives the reason of a refresh that fails", async () => {
    server.current.on(LAUNCH, json(202, refresh({ dashboard_data: "running", assignment_data: "running" })));
    server.current.on(LOOK, json(200, reason("BigQuery does not know the table")));
    const { result } = hook();
    await act(async () => {
      await result.current.triggerRefresh();
    });
    expect(result.current.isRefreshing).toBe(false);
    expect(result.current.error).toMatchObject({
      message: "assignment_data: BigQuery does not know the table",
      refresh: { status: "failed" },
    });
  });

  it("tells at once of tables that are skipped, and asks no more", async () => {
    server.current.on(LAUNCH, json(202, refresh({ dashboard_data: "skipped" })));
    const { result } = hook();
    await act(async () => {
      await result.current.triggerRefresh();
    });
    expect(result.current).toMatchObject({ isRefreshing: false, error: null });
    expect(result.current.progress?.runs.dashboard_data?.state).toBe("skipped");
    expect(server.current.count(LOOK)).toBe(0);
  });

  it("follows the refresh that was under way already when it is asked twice", async () => {
    const running = refresh({ dashboard_data: "running" });
    server.current.on(LAUNCH, json(202, running), json(202, { ...running, already_running: true }));
    server.current.on(LOOK, json(200, running));
    const { result } = hook();
    let first: Promise<unknown> = Promise.resolve();
    act(() => {
      first = result.current.triggerRefresh();
    });
    await waitFor(() => expect(server.current.count(LOOK)).toBeGreaterThan(1));
    act(() => {
      void result.current.triggerRefresh();
    });
    await waitFor(() => expect(result.current.progress?.already_running).toBe(true));
    // The first call's watch has been taken over.
    expect(await first).toBeNull();
    expect(result.current.isRefreshing).toBe(true);
    server.current.on(LOOK, json(200, refresh({ dashboard_data: "success" })));
    await waitFor(() => expect(result.current).toMatchObject({ isRefreshing: false, progress: { status: "success" } }));
  });

  it("goes on watching the first refresh where a second one is refused", async () => {
    server.current.on(
      LAUNCH,
      json(202, refresh({ dashboard_data: "running" })),
      json(404, { detail: "unknown table x" }),
    );
    server.current.on(LOOK, json(200, refresh({ dashboard_data: "running" })));
    const { result } = hook();
    act(() => void result.current.triggerRefresh());
    await waitFor(() => expect(server.current.count(LOOK)).toBeGreaterThan(0));
    await act(async () => {
      await result.current.triggerRefresh(false, ["x"]);
    });
    expect(result.current.isRefreshing).toBe(true);
    server.current.on(LOOK, json(200, refresh({ dashboard_data: "success" })));
    await waitFor(() => expect(result.current.isRefreshing).toBe(false));
  });

  it.each([
    [401, {}, null],
    [429, { "Retry-After": "42" }, 42],
    [503, { "Retry-After": "5" }, 5],
  ])("is told of a launch that is refused with %d", async (code, headers, retryAfter) => {
    server.current.on(LAUNCH, json(code, { detail: "no" }, headers as Record<string, string>));
    const { result } = hook();
    let ended: unknown;
    await act(async () => {
      ended = await result.current.triggerRefresh();
    });
    expect(ended).toBeNull();
    expect(result.current).toMatchObject({ isRefreshing: false, error: { status: code, message: "no", retryAfter } });
  });

  it("can be launched again after a refusal", async () => {
    const refused = json(503, { detail: "away" }, { "Retry-After": "1" });
    server.current.on(LAUNCH, refused, json(202, refresh({ dashboard_data: "skipped" })));
    const { result } = hook();
    await act(async () => {
      await result.current.triggerRefresh();
    });
    expect(result.current.error?.status).toBe(503);
    await act(async () => {
      await result.current.triggerRefresh();
    });
    expect(result.current).toMatchObject({ error: null, progress: { status: "success" } });
  });

  it("waits as long as a 503 asks for while it watches, and goes on", async () => {
    server.current.on(LAUNCH, json(202, refresh({ dashboard_data: "running" })));
    server.current.on(
      LOOK,
      json(503, { detail: "PostgreSQL does not answer" }, { "Retry-After": "1" }),
      json(200, refresh({ dashboard_data: "success" })),
    );
    const { result } = hook();
    act(() => void result.current.triggerRefresh());
    await waitFor(() => expect(result.current.error?.status).toBe(503));
    expect(result.current.isRefreshing).toBe(true);
    const began = Date.now();
    await waitFor(() => expect(result.current.isRefreshing).toBe(false), { timeout: 3000 });
    expect(Date.now() - began).toBeGreaterThan(800);
    expect(result.current).toMatchObject({ error: null, progress: { status: "success" } });
  });

  it("stops watching where its token is refused", async () => {
    server.current.on(LAUNCH, json(202, refresh({ dashboard_data: "running" })));
    server.current.on(LOOK, json(401, { detail: "a token is needed" }));
    const { result } = hook();
    await act(async () => {
      await result.current.triggerRefresh();
    });
    expect(result.current).toMatchObject({ isRefreshing: false, error: { status: 401 } });
    expect(server.current.count(LOOK)).toBe(1);
  });

  it("asks no more once it is unmounted, and gives up what it was asking", async () => {
    server.current.on(LAUNCH, json(202, refresh({ dashboard_data: "running" })));
    server.current.on(LOOK, json(200, refresh({ dashboard_data: "running" })), () => {});
    const { result, unmount } = hook();
    let ended: Promise<unknown> = Promise.resolve("nothing");
    act(() => {
      ended = result.current.triggerRefresh();
    });
    await waitFor(() => expect(server.current.count(LOOK)).toBe(2));
    unmount();
    await waitFor(() => expect(server.current.dropped).toBe(1));
    expect(await ended).toBeNull();
    await sleep(60);
    expect(server.current.count(LOOK)).toBe(2);
  });

  it("does not take the event of a click for `force`", async () => {
    server.current.on(LAUNCH, json(202, refresh({ dashboard_data: "skipped" })));
    const { result } = hook();
    await act(async () => {
      await (result.current.triggerRefresh as (event: unknown) => Promise<unknown>)({ type: "click" });
    });
    expect(JSON.parse(server.current.asked[0]?.body ?? "")).toMatchObject({ force: false });
  });
});
