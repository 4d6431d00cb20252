import { QueryClient, QueryClientProvider, useMutation, useQuery } from "@tanstack/react-query";
import { act, renderHook, waitFor } from "@testing-library/react";
import { type ReactNode, StrictMode } from "react";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  createClient,
  ETLError,
  ETLProvider,
  etlKeys,
  figuresQueryOptions,
  refreshMutationOptions,
  refreshQueryOptions,
  statusQueryOptions,
  tableQueryOptions,
  useETLEvents,
  useETLRefresh,
  useETLStatus,
  useRefresh,
  useTable,
} from "../src";
import { createGraphQLTransport } from "../src/graphql";
import { refresh, status, tableStatus } from "./samples";
import { event, json, sleep, stream, testServer } from "./server";

const STATUS = "GET /api/v1/etl/status";
const EVENTS = "GET /api/v1/etl/events";
const LAUNCH = "POST /api/v1/etl/refresh/dashboard";
const LOOK = "GET /api/v1/etl/refresh/p1";
const FIGURES = "GET /api/v1/etl/figures";
const DETAIL = "GET /api/v1/etl/status/table/dashboard_data";
const OTHER_DETAIL = "GET /api/v1/etl/status/table/evolution_data";
const server = testServer();
let queries: QueryClient;

/** The state of two tables with rows of these versions. */
function versions(dashboard: number, evolution: number, more = {}) {
  return status({
    tables: [
      tableStatus({ data_version: dashboard, ...more }),
      tableStatus({ table: "evolution_data", data_version: evolution }),
    ],
  });
}

function detail(table: string) {
  return json(200, { table: tableStatus({ table }), extractions: [], partitions: [] });
}

function client(token?: string) {
  return createClient({ baseUrl: server.current.url, token });
}

function render<T>(hook: () => T, etl = client()) {
  const wrapper = ({ children }: { children: ReactNode }) => (
    <StrictMode>
      <QueryClientProvider client={queries}>
        <ETLProvider client={etl}>{children}</ETLProvider>
      </QueryClientProvider>
    </StrictMode>
  );
  return renderHook(hook, { wrapper });
}

beforeEach(() => {
  queries = new QueryClient();
});
afterEach(() => queries.clear());

describe("the options for TanStack Query", () => {
  it("read the state into the application's own QueryClient, once for queries and hooks", async () => {
    server.current.on(STATUS, json(200, status({ running: 3 })));
    const etl = client();
    const told = await queries.fetchQuery(statusQueryOptions(etl));
    expect(told.running).toBe(3);
    const { result } = render(() => [useQuery(statusQueryOptions(client())), useETLStatus()] as const);
    expect(result.current[0].data).toBe(told);
    expect(result.current[1].status).toBe(told);
    expect(queries.getQueryData(etlKeys.status(etl))).toBe(told);
    expect(server.current.count(STATUS)).toBe(1);
  });

  it("launch a refresh and follow it", async () => {
    server.current.on(LAUNCH, json(202, refresh({ dashboard_data: "running" })));
    server.current.on(
      LOOK,
      json(200, refresh({ dashboard_data: "running" })),
      json(200, refresh({ dashboard_data: "success" })),
    );
    const etl = client();
    const { result } = render(() => {
      const launch = useMutation(refreshMutationOptions(etl));
      const id = launch.data?.pipeline_id ?? "none";
      const watched = useQuery({ ...refreshQueryOptions(etl, id, { intervalMs: 10 }), enabled: launch.isSuccess });
      return { launch, watched };
    });
    act(() => result.current.launch.mutate({ tables: ["dashboard_data"] }));
    await waitFor(() => expect(result.current.watched.data?.status).toBe("success"));
    expect(JSON.parse(server.current.asked[0]?.body ?? "")).toMatchObject({ force: false, tables: ["dashboard_data"] });
    await sleep(80);
    expect(server.current.count(LOOK)).toBe(2);
  });

  it("give a refused launch as an ETLError, without trying again", async () => {
    server.current.on(LAUNCH, json(503, { detail: "away" }));
    const { result } = render(() => useMutation(refreshMutationOptions(client())));
    act(() => result.current.mutate({}));
    await waitFor(() => expect(result.current.error).toBeInstanceOf(ETLError));
    await sleep(50);
    expect(server.current.count(LAUNCH)).toBe(1);
  });

  it("read the state again when a refresh has ended", async () => {
    server.current.on(STATUS, json(200, status({ running: 1 })), json(200, status({ running: 0 })));
    server.current.on(LOOK, json(200, refresh({ dashboard_data: "success" })));
    const { result } = render(() => useETLStatus());
    await waitFor(() => expect(result.current.status?.running).toBe(1));
    await queries.fetchQuery(refreshQueryOptions(client(), "p1"));
    await waitFor(() => expect(result.current.status?.running).toBe(0));
  });

  it("keep apart what another API or another token reads, and reveal no token", () => {
    const keys = [client(), client("secret-one"), client("secret-two"), createClient({ baseUrl: "http://b" })].map(
      (etl) => JSON.stringify(etlKeys.status(etl)),
    );
    expect(new Set(keys).size).toBe(4);
    expect(keys.join()).not.toContain("secret");
    expect(etlKeys.status(client("secret-one"))).toEqual(etlKeys.status(client("secret-one")));
    const named = createGraphQLTransport({ url: `${server.current.url}/graphql`, token: "secret-one" });
    expect(etlKeys.status(named)).not.toEqual(etlKeys.status(client("secret-one")));
    const strange = () => ({ launch: client().launch, progress: client().progress, status: client().status });
    expect(etlKeys.status(strange())).not.toEqual(etlKeys.status(strange()));
  });
});

describe("triggerRefresh of useRefresh", () => {
  it.each([
    [401, "answer", false],
    [503, "answer", true],
  ])("rejects with an ETLError where the launch is refused with %d", async (code, kind, passes) => {
    server.current.on(LAUNCH, json(code, { detail: "no" }));
    const { result } = render(() => useRefresh());
    let thrown: unknown;
    await act(async () => {
      thrown = await result.current.triggerRefresh().catch((error: unknown) => error);
    });
    expect(thrown).toBeInstanceOf(ETLError);
    expect(thrown).toMatchObject({ status: code, kind, passes, message: "no" });
    expect(result.current).toMatchObject({ error: thrown, isRefreshing: false });
  });

  it("rejects where nobody answers, where the refresh fails, and where the component is unmounted", async () => {
    const caught = (told: Promise<unknown>) => told.then(() => null).catch((error: unknown) => error);
    const nobody = render(() => useRefresh(), createClient({ baseUrl: "http://127.0.0.1:9" }));
    let thrown: unknown;
    await act(async () => {
      thrown = await caught(nobody.result.current.triggerRefresh());
    });
    expect(thrown).toMatchObject({ name: "ETLError", kind: "network", status: 0 });

    server.current.on(LAUNCH, json(202, refresh({ dashboard_data: "failed" })));
    const { result, unmount } = render(() => useRefresh({ intervalMs: 10 }));
    await act(async () => {
      thrown = await caught(result.current.triggerRefresh());
    });
    expect(thrown).toMatchObject({ kind: "refresh", refresh: { status: "failed" } });

    server.current.on(LAUNCH, json(202, refresh({ dashboard_data: "running" })));
    server.current.on(LOOK, json(200, refresh({ dashboard_data: "running" })));
    let last: Promise<unknown> = Promise.resolve();
    act(() => {
      last = caught(result.current.triggerRefresh());
    });
    await waitFor(() => expect(server.current.count(LOOK)).toBeGreaterThan(0));
    unmount();
    expect(await last).toMatchObject({ kind: "abandoned" });
  });

  it("leaves no rejection unhandled where nobody waits for it, and keeps null where that is asked for", async () => {
    server.current.on(LAUNCH, json(503, { detail: "away" }));
    const unhandled: unknown[] = [];
    const note = (reason: unknown) => unhandled.push(reason);
    process.on("unhandledRejection", note);
    const { result } = render(() => [useRefresh(), useRefresh({ onFailure: "null" })] as const);
    act(() => void result.current[0].triggerRefresh());
    await waitFor(() => expect(result.current[0].error?.status).toBe(503));
    let told: unknown = "nothing";
    await act(async () => {
      told = await result.current[1].triggerRefresh();
    });
    expect(told).toBeNull();
    process.off("unhandledRejection", note);
    expect(unhandled).toEqual([]);
  });

  it("refreshes the tables of its hook, which finds again only a refresh of these", async () => {
    server.current.on(LAUNCH, json(202, refresh({ evolution_data: "running" })));
    server.current.on(LOOK, json(200, refresh({ evolution_data: "running" })));
    const first = render(() => useRefresh({ tables: ["evolution_data"], intervalMs: 10 }));
    act(() => void first.result.current.triggerRefresh(true));
    await waitFor(() => expect(first.result.current.progress).not.toBeNull());
    expect(JSON.parse(server.current.asked[0]?.body ?? "")).toMatchObject({ tables: ["evolution_data"] });
    first.unmount();
    const { result } = render(() => [
      useRefresh({ tables: ["dashboard_data"] }),
      useRefresh({ tables: ["evolution_data"] }),
    ]);
    expect(result.current.map(({ isRefreshing }) => isRefreshing)).toEqual([false, true]);
  });

  it("shows a refresh whose id the state names, as after the page was loaded again", async () => {
    server.current.on(LOOK, json(200, refresh({ dashboard_data: "running" })));
    const { result } = render(() => useETLRefresh(10, { pipelineId: "p1" }));
    await waitFor(() => expect(result.current).toMatchObject({ isRefreshing: true, progress: { pipeline_id: "p1" } }));
    server.current.on(LOOK, json(200, refresh({ dashboard_data: "success" })));
    await waitFor(() => expect(result.current.isRefreshing).toBe(false));
  });
});

describe("useTable", () => {
  it("reads again when the table's version has moved, and not otherwise", async () => {
    server.current.on(STATUS, json(200, versions(7, 3)));
    server.current.on(DETAIL, detail("dashboard_data"));
    server.current.on(OTHER_DETAIL, detail("evolution_data"));
    const rows = { dashboard_data: 0, evolution_data: 0 };
    const { result } = render(() => {
      const tables = [useTable("dashboard_data", 30), useTable("evolution_data", 30)];
      const read = (name: keyof typeof rows, key: readonly unknown[]) => ({
        queryKey: [...key, "grid"],
        queryFn: () => ++rows[name],
        staleTime: Number.POSITIVE_INFINITY,
      });
      useQuery(read("dashboard_data", tables[0]?.rowsKey ?? []));
      useQuery(read("evolution_data", tables[1]?.rowsKey ?? []));
      return tables;
    });
    await waitFor(() => expect(result.current.map(({ dataVersion }) => dataVersion)).toEqual([7, 3]));
    await waitFor(() => expect(server.current.count(STATUS)).toBeGreaterThan(5));
    expect([server.current.count(DETAIL), server.current.count(OTHER_DETAIL)]).toEqual([1, 1]);
    expect(rows).toEqual({ dashboard_data: 1, evolution_data: 1 });
    server.current.on(STATUS, json(200, versions(8, 3)));
    await waitFor(() => expect(result.current[0]?.dataVersion).toBe(8));
    await waitFor(() => expect(server.current.count(DETAIL)).toBe(2));
    const asked = server.current.count(STATUS);
    await waitFor(() => expect(server.current.count(STATUS)).toBeGreaterThan(asked + 3));
    expect([server.current.count(DETAIL), server.current.count(OTHER_DETAIL)]).toEqual([2, 1]);
    expect(rows).toEqual({ dashboard_data: 2, evolution_data: 1 });
    // A failure changes no row; the table's last attempts are others.
    server.current.on(STATUS, json(200, versions(8, 3, { status: "failed", run_id: "r9" })));
    await waitFor(() => expect(server.current.count(DETAIL)).toBe(3));
    expect(rows).toEqual({ dashboard_data: 2, evolution_data: 1 });
  });

  it("tells of an unknown table, and of a client that cannot tell", async () => {
    server.current.on(STATUS, json(200, versions(7, 3)));
    const { result } = render(() => useTable("nothing"));
    await waitFor(() =>
      expect(result.current).toMatchObject({ table: null, isLoading: false, error: { status: 404 } }),
    );
    const graphql = createGraphQLTransport({ url: `${server.current.url}/graphql` });
    const { launch, progress, status: state } = graphql;
    expect(() => render(() => useTable("dashboard_data"), { launch, progress, status: state } as never)).toThrow(
      "useTable needs the HTTP client",
    );
  });
});

describe("events", () => {
  it("have the rows of the days that changed read again, and no others", async () => {
    const pieces = [
      event("status", versions(7, 3)),
      event("table", tableStatus({ data_version: 8 })),
      event("data", { table: "dashboard_data", data_version: 8, days: ["2026-11-19..2026-11-21", "2026-11-25"] }),
    ];
    server.current.on(EVENTS, stream(pieces.slice(0, 1)));
    const etl = client();
    const read: Record<string, number> = {};
    const keys = {
      changed: etlKeys.rows(etl, "dashboard_data", "2026-11-20"),
      overlapping: etlKeys.rows(etl, "dashboard_data", "2026-11-22..2026-11-30"),
      unchanged: etlKeys.rows(etl, "dashboard_data", "2026-11-24"),
      any: [...etlKeys.rows(etl, "dashboard_data"), "by agent"],
      other: etlKeys.rows(etl, "evolution_data", "2026-11-20"),
    };
    const useRows = (name: string, queryKey: readonly unknown[]) =>
      useQuery({
        queryKey,
        queryFn: () => {
          read[name] = (read[name] ?? 0) + 1;
          return read[name];
        },
        staleTime: Number.POSITIVE_INFINITY,
      });
    server.current.on(EVENTS, async (response, asked) => {
      await stream(pieces.slice(0, 1))(response, asked);
      await sleep(60);
      for (const piece of pieces.slice(1)) response.write(piece);
    });
    const { result } = render(() => {
      useRows("changed", keys.changed);
      useRows("overlapping", keys.overlapping);
      useRows("unchanged", keys.unchanged);
      useRows("any", keys.any);
      useRows("other", keys.other);
      return useETLEvents(etl);
    }, etl);
    await waitFor(() => expect(result.current.status?.tables[0]?.data_version).toBe(8));
    await waitFor(() => expect(read.changed).toBe(2));
    await sleep(40);
    expect(read).toEqual({ changed: 2, overlapping: 2, unchanged: 1, any: 2, other: 1 });
  });

  it("have all rows of a table read again where the version has moved before they came", async () => {
    const etl = client();
    queries.setQueryData(etlKeys.status(etl), versions(7, 3));
    server.current.on(EVENTS, stream([event("status", versions(9, 3))]));
    let reads = 0;
    render(() => {
      useETLEvents(etl);
      useQuery({ queryKey: etlKeys.rows(etl, "dashboard_data", "2026-11-20"), queryFn: () => ++reads });
    }, etl);
    await waitFor(() => expect(reads).toBeGreaterThan(1));
  });

  it("have a table's detail and the key figures read again", async () => {
    server.current.on(STATUS, json(200, versions(7, 3)));
    server.current.on(FIGURES, json(200, { figures: [] }));
    server.current.on(DETAIL, detail("dashboard_data"));
    server.current.on(EVENTS, async (response, asked) => {
      await stream([event("status", versions(7, 3))])(response, asked);
      await sleep(100);
      response.write(event("table", tableStatus({ data_version: 7, run_id: "r2" })));
    });
    const etl = client();
    render(() => {
      useETLEvents(etl);
      useQuery(figuresQueryOptions(etl));
      return useQuery(tableQueryOptions(etl, "dashboard_data"));
    }, etl);
    await waitFor(() => expect(server.current.count(DETAIL)).toBe(2));
    await sleep(40);
    expect([server.current.count(DETAIL), server.current.count(FIGURES)]).toEqual([2, 2]);
  });
});
