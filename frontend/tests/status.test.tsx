import { act, renderHook, waitFor } from "@testing-library/react";
import type { ReactNode } from "react";
import { describe, expect, it } from "vitest";
import { createClient, ETLProvider, useETLStatus } from "../src";
import { status } from "./samples";
import { json, sleep, testServer } from "./server";

const STATUS = "GET /api/v1/etl/status";
const server = testServer();

function hook(intervalMs?: number) {
  const client = createClient({ baseUrl: server.current.url });
  const wrapper = ({ children }: { children: ReactNode }) => <ETLProvider client={client}>{children}</ETLProvider>;
  return renderHook(() => useETLStatus(intervalMs), { wrapper });
}

describe("useETLStatus", () => {
  it("loads, and asks again after its interval", async () => {
    server.current.on(STATUS, json(200, status({ running: 1 })), json(200, status({ running: 2 })));
    const { result } = hook(150);
    expect(result.current).toMatchObject({ status: null, error: null, isLoading: true });
    await waitFor(() => expect(result.current.status?.running).toBe(1));
    expect(result.current.isLoading).toBe(false);
    await waitFor(() => expect(result.current.status?.running).toBe(2));
  });

  it("asks at once when it is told to, however long the interval", async () => {
    server.current.on(STATUS, json(200, status({ running: 1 })), json(200, status({ running: 2 })));
    const { result } = hook();
    await waitFor(() => expect(result.current.status?.running).toBe(1));
    act(() => result.current.refetch());
    expect(result.current.isLoading).toBe(true);
    await waitFor(() => expect(result.current).toMatchObject({ isLoading: false, status: { running: 2 } }));
  });

  it("keeps the last state while errors follow, and recovers", async () => {
    const away = json(503, { detail: "PostgreSQL does not answer" }, { "Retry-After": "1" });
    server.current.on(STATUS, json(200, status({ running: 1 })), away, json(200, status({ running: 3 })));
    const { result } = hook(10);
    await waitFor(() => expect(result.current.error?.status).toBe(503));
    expect(result.current.status?.running).toBe(1);
    const asked = server.current.count(STATUS);
    await sleep(300);
    expect(server.current.count(STATUS)).toBe(asked);
    await waitFor(() => expect(result.current).toMatchObject({ error: null, status: { running: 3 } }), {
      timeout: 3000,
    });
  });

  it("asks no more once it is unmounted", async () => {
    server.current.on(STATUS, json(200, status()), () => {});
    const { unmount } = hook(10);
    await waitFor(() => expect(server.current.count(STATUS)).toBe(2));
    unmount();
    await waitFor(() => expect(server.current.dropped).toBe(1));
    await sleep(60);
    expect(server.current.count(STATUS)).toBe(2);
  });
});
