import { readFileSync } from "node:fs";
import { act, renderHook, waitFor } from "@testing-library/react";
import type { ReactNode } from "react";
import { describe, expect, it } from "vitest";
import { ETLProvider, useETLRefresh, useETLStatus } from "../src";
import { createGraphQLTransport, type GraphQLOptions } from "../src/graphql";
import { limaDay, trailingDays } from "../src/lima";
import { type Answer, json, testServer } from "./server";

const server = testServer();
const OPERATION = /(?:query|mutation) (\w+)/;

/** What Dagster answers, by the operation's name. */
type World = Record<string, unknown>;

const REPOSITORY = { name: "__repository__", location: { name: "pulso_etl" } };
const WORLD: World = {
  AssetLocation: locations((table) => [`refresh_${table}`, "refresh_all"]),
  Freshness: { assetNodes: [] },
  Runs: { runsOrError: { __typename: "Runs", results: [] } },
};

/** Where the tables are that are asked for, each in these jobs. */
function locations(jobs: (table: string) => string[]) {
  return ({ assetKeys }: { assetKeys: { path: [string] }[] }) => ({
    assetNodes: assetKeys.map(({ path: [table] }) => ({
      assetKey: { path: [table] },
      repository: REPOSITORY,
      jobNames: jobs(table),
    })),
  });
}

function run(table: string, status: string, more: object = {}) {
  const tags = [
    { key: "pulso_etl/table", value: table },
    { key: "dagster/asset_partition_range_start", value: "2026-11-19" },
    { key: "dagster/asset_partition_range_end", value: "2026-11-25" },
  ];
  const times = { creationTime: 1_796_000_000, startTime: 1_796_000_001, endTime: null };
  return {
    runId: `run of ${table}`,
    status,
    jobName: `refresh_${table}`,
    ...times,
    tags,
    assetSelection: null,
    ...more,
  };
}

function days(end: string) {
  return [
    { key: "dagster/asset_partition_range_start", value: "2024-01-01" },
    { key: "dagster/asset_partition_range_end", value: end },
  ];
}

function runs(...results: object[]) {
  return { runsOrError: { __typename: "Runs", results } };
}

function loaded(table: string, secondsAgo: number) {
  const materialization = { runId: "r", partition: "2026-11-25", timestamp: String(Date.now() - secondsAgo * 1000) };
  return { assetKey: { path: [table] }, assetMaterializations: [materialization] };
}

function dagster(world: World): Answer {
  return (response, asked) => {
    const name = OPERATION.exec(JSON.parse(asked.body).query)?.[1] ?? "";
    const found = { ...WORLD, ...world }[name];
    const data = typeof found === "function" ? found(JSON.parse(asked.body).variables) : found;
    return json(200, data ? { data } : { errors: [{ message: `no answer to ${name}` }] })(response, asked);
  };
}

function asked(operation: string) {
  return server.current.asked
    .map(({ body }) => JSON.parse(body))
    .filter(({ query }) => OPERATION.exec(query)?.[1] === operation);
}

function wrapper(options: GraphQLOptions = {}) {
  const client = createGraphQLTransport({ url: `${server.current.url}/graphql`, token: "t0ken", ...options });
  return ({ children }: { children: ReactNode }) => <ETLProvider client={client}>{children}</ETLProvider>;
}

/** `assignment_data` is asked for, and its refresh followed to its end. */
async function refreshed(world: World, force = false) {
  server.current.on("POST /graphql", dagster(world));
  const { result } = renderHook(() => useETLRefresh(10), { wrapper: wrapper() });
  await act(async () => {
    await result.current.triggerRefresh(force, ["assignment_data"]);
  });
  return result;
}

/** The run of `assignment_data`, of which nothing is known before it is launched. */
function ended(status: string) {
  return ({ filter }: { filter: { runIds?: string[] } }) =>
    filter.runIds ? runs(run("assignment_data", status)) : runs();
}

function launched(...tables: string[]) {
  const results = tables.map((table) => ({
    __typename: "LaunchRunSuccess",
    run: { runId: `run of ${table}`, status: "QUEUED" },
  }));
  return { launchMultipleRuns: { __typename: "LaunchMultipleRunsResult", launchMultipleRunsResult: results } };
}

describe("the hooks over GraphQL", () => {
  it("launch one run for each table of the dashboard, over its trailing days, and watch them", async () => {
    let over = false;
    const world: World = {
      LaunchRuns: launched("dashboard_data", "evolution_data"),
      Runs: ({ filter }: { filter: { runIds?: string[] } }) => {
        const state = over ? "SUCCESS" : "STARTED";
        return filter.runIds ? runs(run("dashboard_data", state), run("evolution_data", state)) : runs();
      },
    };
    server.current.on("POST /graphql", dagster(world));
    const { result } = renderHook(() => useETLRefresh(10), { wrapper: wrapper() });
    act(() => void result.current.triggerRefresh());
    await waitFor(() => expect(result.current.progress?.runs.evolution_data?.state).toBe("running"));
    expect(result.current.progress?.runs.dashboard_data?.partitions).toBe("2026-11-19..2026-11-25");
    over = true;
    await waitFor(() =>
      expect(result.current).toMatchObject({ isRefreshing: false, progress: { status: "success" }, error: null }),
    );

    const [launch] = asked("LaunchRuns");
    expect(launch.query).toBe(readFileSync("../pulso_etl/api/operations/launch_runs.graphql", "utf-8"));
    const days = { dashboard_data: trailingDays(7, new Date()), evolution_data: trailingDays(3, new Date()) };
    for (const [place, [table, { start, end }]] of Object.entries(days).entries()) {
      const { selector, executionMetadata } = launch.variables.params[place];
      expect(selector).toEqual({
        repositoryName: "__repository__",
        repositoryLocationName: "pulso_etl",
        jobName: `refresh_${table}`,
      });
      expect(executionMetadata.tags).toContainEqual({ key: "dagster/asset_partition_range_start", value: start });
      expect(executionMetadata.tags).toContainEqual({ key: "dagster/asset_partition_range_end", value: end });
    }
    expect(server.current.asked[0]?.headers.authorization).toBe("Bearer t0ken");
    expect(server.current.asked[0]?.headers["content-type"]).toBe("application/json");
  });

  it("skip what is fresh and join what is under way", async () => {
    const world: World = {
      Freshness: { assetNodes: [loaded("dashboard_data", 60), loaded("evolution_data", 60)] },
      Runs: ({ filter }: { filter: { statuses?: string[]; runIds?: string[] } }) => {
        if (filter.runIds) return runs(run("evolution_data", "SUCCESS"));
        return filter.statuses ? runs(run("evolution_data", "STARTED", { tags: days(limaDay(new Date())) })) : runs();
      },
    };
    server.current.on("POST /graphql", dagster(world));
    const { result } = renderHook(() => useETLRefresh(10), { wrapper: wrapper() });
    let end: unknown;
    await act(async () => {
      end = await result.current.triggerRefresh();
    });
    expect(asked("LaunchRuns")).toEqual([]);
    expect(end).toMatchObject({
      status: "success",
      already_running: true,
      runs: { dashboard_data: { state: "skipped" }, evolution_data: { state: "success" } },
    });
  });

  it("do not take a back-fill of older days for a refresh", async () => {
    const world: World = {
      LaunchRuns: launched("assignment_data"),
      Runs: ({ filter }: { filter: { statuses?: string[]; runIds?: string[] } }) => {
        if (filter.runIds) return runs(run("assignment_data", "SUCCESS"));
        return filter.statuses ? runs(run("assignment_data", "STARTED", { tags: days("2024-01-31") })) : runs();
      },
    };
    await refreshed(world);
    expect(asked("LaunchRuns")).toHaveLength(1);
  });

  it("load what is fresh where they are told to, past the day's budget", async () => {
    const world: World = {
      Freshness: { assetNodes: [loaded("assignment_data", 60)] },
      LaunchRuns: launched("assignment_data"),
      Runs: ended("SUCCESS"),
    };
    const result = await refreshed(world, true);
    expect(result.current.progress?.status).toBe("success");
    expect(asked("LaunchRuns")[0].variables.params[0].executionMetadata.tags).toContainEqual({
      key: "pulso_etl/force",
      value: "true",
    });
  });

  it("launch a table without a job of its own out of the job of all assets", async () => {
    const world: World = {
      AssetLocation: locations(() => ["__ASSET_JOB"]),
      LaunchRuns: launched("assignment_data"),
      Runs: ended("SUCCESS"),
    };
    const result = await refreshed(world);
    expect(result.current.progress?.status).toBe("success");
    const { selector, executionMetadata } = asked("LaunchRuns")[0].variables.params[0];
    expect(selector).toMatchObject({ jobName: "__ASSET_JOB", assetSelection: [{ path: ["assignment_data"] }] });
    expect(executionMetadata.tags.map(({ key }: { key: string }) => key)).toEqual([
      "dagster/asset_partition_range_start",
      "dagster/asset_partition_range_end",
      "pulso_etl/pipeline",
    ]);
  });

  it("say so where Dagster does not know the table", async () => {
    const result = await refreshed({ AssetLocation: { assetNodes: [] } });
    expect(result.current.error?.message).toContain("no code location of Dagster's has the asset assignment_data");
  });

  it("give the reason of a run that fails", async () => {
    const world: World = {
      LaunchRuns: launched("assignment_data"),
      Runs: ended("FAILURE"),
      RunFailure: {
        logsForRun: {
          events: [
            { __typename: "RunStartEvent" },
            {
              __typename: "ExecutionStepFailureEvent",
              failureMetadata: { description: "BigQuery does not know the table" },
            },
            { __typename: "RunFailureEvent", message: "Steps failed" },
          ],
        },
      },
    };
    const result = await refreshed(world);
    expect(result.current.error?.message).toBe("assignment_data: BigQuery does not know the table");
  });

  it("watch the run that took the place of one that crashed", async () => {
    const again = run("assignment_data", "SUCCESS", { runId: "second" });
    const world: World = {
      LaunchRuns: launched("assignment_data"),
      Runs: ({ filter }: { filter: { runIds?: string[]; tags?: object[] } }) => {
        if (filter.tags) return runs(again, run("assignment_data", "FAILURE"));
        return filter.runIds ? runs(run("assignment_data", "FAILURE")) : runs();
      },
    };
    const result = await refreshed(world);
    expect(result.current).toMatchObject({
      error: null,
      progress: { runs: { assignment_data: { run_id: "second", state: "success" } } },
    });
  });

  it("tell the state of the tables", async () => {
    const world: World = {
      Freshness: {
        assetNodes: [loaded("dashboard_data", 60), loaded("evolution_data", 30_000), loaded("operation_data", 90_000)],
      },
      Runs: ({ filter }: { filter: { statuses?: string[] } }) =>
        filter.statuses
          ? runs(run("dashboard_data", "QUEUED"))
          : runs(run("evolution_data", "FAILURE"), run("evolution_data", "SUCCESS"), run("operation_data", "SUCCESS")),
    };
    server.current.on("POST /graphql", dagster(world));
    const { result } = renderHook(() => useETLStatus(), { wrapper: wrapper() });
    await waitFor(() => expect(result.current.isLoading).toBe(false));
    const told = result.current.status;
    expect(told).toMatchObject({ status: "degraded", total_tables: 5, failures: 1, running: 1 });
    const states = told?.tables.map(({ table, status, freshness, run_under_way }) => [
      table,
      status,
      freshness,
      run_under_way?.state,
    ]);
    expect(states?.slice(0, 4)).toEqual([
      ["dashboard_data", "success", "fresh", "queued"],
      ["evolution_data", "failed", "due", undefined],
      ["assignment_data", "never", "never", undefined],
      ["operation_data", "success", "stale", undefined],
    ]);
  });

  it.each([
    ["a refusal", json(403, { detail: "ana has the role read; refresh is needed" }), 403, /role read/],
    ["too many launches", json(429, { detail: "too many" }, { "Retry-After": "9" }), 429, /too many/],
    ["errors of GraphQL", json(200, { errors: [{ message: "unknown field" }] }), 200, /unknown field/],
    ["no GraphQL at all", (response: Parameters<Answer>[0]) => void response.end("<html>"), 200, /no GraphQL/],
  ] as [string, Answer, number, RegExp][])("tell of %s", async (_, answer, code, message) => {
    server.current.on("POST /graphql", answer);
    const { result } = renderHook(() => useETLRefresh(10), { wrapper: wrapper() });
    await act(async () => {
      await result.current.triggerRefresh();
    });
    expect(result.current).toMatchObject({ isRefreshing: false, error: { status: code } });
    expect(result.current.error?.message).toMatch(message);
  });

  it("tell of a table that nobody knows, without asking", async () => {
    const { result } = renderHook(() => useETLRefresh(10), { wrapper: wrapper() });
    await act(async () => {
      await result.current.triggerRefresh(false, ["nothing"]);
    });
    expect(result.current.error).toMatchObject({ status: 404, message: /unknown table nothing/ });
    expect(server.current.asked).toEqual([]);
  });
});

describe("the trailing days", () => {
  it.each([
    ["2026-11-25T04:59:59Z", 1, "2026-11-24", "2026-11-24"],
    ["2026-11-25T05:00:00Z", 1, "2026-11-25", "2026-11-25"],
    ["2026-03-01T12:00:00Z", 7, "2026-02-23", "2026-03-01"],
    ["2027-01-01T04:00:00Z", 2, "2026-12-30", "2026-12-31"],
  ])("at %s, %d of them, are those of America/Lima", (now, days, start, end) => {
    expect(trailingDays(days, new Date(now))).toEqual({ start, end });
  });
});
