import { readFileSync } from "node:fs";
import { act, renderHook, waitFor } from "@testing-library/react";
import type { ReactNode } from "react";
import { describe, expect, it } from "vitest";
import { ETLProvider, useETLRefresh, useETLStatus } from "../src";
import { createGraphQLTransport, type GraphQLOptions } from "../src/graphql";
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

function runs(...results: object[]) {
  return { runsOrError: { __typename: "Runs", results } };
}

/** A table as Dagster tells of it, loaded a minute ago or longer. */
function loaded(table: string, freshnessStatus: string) {
  const materialization = { runId: "r", partition: "2026-11-25", timestamp: String(Date.now() - 60_000) };
  return {
    assetKey: { path: [table] },
    freshnessStatusInfo: { freshnessStatus },
    assetMaterializations: [materialization],
  };
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
  it("launch one run for each table of the dashboard, name no days, and watch them", async () => {
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
    for (const [place, table] of ["dashboard_data", "evolution_data"].entries()) {
      const { selector, executionMetadata } = launch.variables.params[place];
      expect(selector).toEqual({
        repositoryName: "__repository__",
        repositoryLocationName: "pulso_etl",
        jobName: `refresh_${table}`,
      });
      expect(executionMetadata.tags.map(({ key }: { key: string }) => key)).toEqual(["pulso_etl/pipeline"]);
    }
    expect(server.current.asked[0]?.headers.authorization).toBe("Bearer t0ken");
    expect(server.current.asked[0]?.headers["content-type"]).toBe("application/json");
  });

  it("tell what the run skipped, and why", async () => {
    const tags = [{ key: "pulso_etl/skipped", value: "fresh: loaded 0:01:00 ago, due every 6:00:00" }];
    const world: World = {
      LaunchRuns: launched("assignment_data"),
      Runs: ({ filter }: { filter: { runIds?: string[] } }) =>
        filter.runIds ? runs(run("assignment_data", "SUCCESS", { tags })) : runs(),
    };
    const result = await refreshed(world);
    expect(result.current).toMatchObject({
      error: null,
      progress: {
        status: "success",
        runs: { assignment_data: { state: "skipped", message: /^fresh/, partitions: null } },
      },
    });
  });

  it("ask for a load of what is fresh, past the day's budget, where they are told to", async () => {
    const result = await refreshed({ LaunchRuns: launched("assignment_data"), Runs: ended("SUCCESS") }, true);
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
    expect(executionMetadata.tags.map(({ key }: { key: string }) => key)).toEqual(["pulso_etl/pipeline"]);
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
        assetNodes: [
          loaded("dashboard_data", "HEALTHY"),
          loaded("evolution_data", "WARNING"),
          loaded("operation_data", "DEGRADED"),
          loaded("productivity_data", "UNKNOWN"),
        ],
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
    expect(states).toEqual([
      ["dashboard_data", "success", "fresh", "queued"],
      ["evolution_data", "failed", "due", undefined],
      ["assignment_data", "never", "never", undefined],
      ["operation_data", "success", "stale", undefined],
      // Dagster has not judged it yet.
      ["productivity_data", "success", "due", undefined],
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
