/**
 * The hooks' transport over Dagster's GraphQL. Pulso ETL serves it at `/graphql`; Dagster's webserver serves it too.
 *
 * It asks for refreshes and names no days: each run finds its days, and loads nothing if its table is fresh. It knows only what
 * Dagster knows: it does not know the rows of a running load, and of an extraction it knows only the end. If you can reach the HTTP
 * API, `createClient` tells more.
 */
import assetLocation from "../../pulso_etl/api/operations/asset_location.graphql?raw";
import freshnessQuery from "../../pulso_etl/api/operations/freshness.graphql?raw";
import launchRuns from "../../pulso_etl/api/operations/launch_runs.graphql?raw";
import runFailure from "../../pulso_etl/api/operations/run_failure.graphql?raw";
import runsQuery from "../../pulso_etl/api/operations/runs.graphql?raw";
import { isAbort } from "./client.js";
import { asETLError, ETLError, refusal } from "./errors.js";
import tablesOfPulso from "./tables.json";
import { scopeOf, type Transport } from "./transport.js";
import type { Refresh, Status, TableConfig, TableRun, TableStatus } from "./types.js";

/** What this transport must know of a table. `client.tables()` returns this and more. */
export type TablePlan = Pick<TableConfig, "table" | "group" | "refresh_every_seconds"> & Partial<TableConfig>;

export interface GraphQLOptions {
  /** Address of the end point. The default is `/graphql` of the page's own origin. */
  url?: string | undefined;
  token?: string | null | undefined;
  /** Used instead of the global `fetch`. */
  fetch?: typeof globalThis.fetch | undefined;
  /** The tables. The default is Pulso's five. */
  tables?: readonly TablePlan[] | undefined;
  /** The deployment's TIMEZONE. The default is America/Lima. */
  timezone?: string | undefined;
}

interface Run {
  runId: string;
  status: string;
  jobName: string;
  creationTime: number;
  startTime: number | null;
  endTime: number | null;
  tags: { key: string; value: string }[];
  assetSelection: { path: string[] }[] | null;
}

interface AssetNode {
  assetKey: { path: string[] };
  freshnessStatusInfo?: { freshnessStatus: string } | null;
  assetMaterializations: { runId: string; partition: string | null; timestamp: string }[];
}

interface Fault {
  __typename: string;
  message?: string;
}

const RANGE_START = "dagster/asset_partition_range_start";
const RANGE_END = "dagster/asset_partition_range_end";
const PIPELINE = "pulso_etl/pipeline";
const TABLE = "pulso_etl/table";
const FORCE = "pulso_etl/force";
const SKIPPED = "pulso_etl/skipped";
const WHOLE_GRAPH = "__ASSET_JOB";
const WAITING = ["QUEUED", "NOT_STARTED", "MANAGED", "STARTING"];
const UNDER_WAY = [...WAITING, "STARTED", "CANCELING"];
const ENDS: Record<string, TableRun["state"]> = { SUCCESS: "success", FAILURE: "failed", CANCELED: "canceled" };
/** How fresh the rows of a table are, as Dagster's freshness policy sees them. */
const FRESHNESS: Record<string, TableStatus["freshness"]> = { HEALTHY: "fresh", WARNING: "due", DEGRADED: "stale" };
/** In how many runs the transport looks for the last run of each table. */
const RECENT = 100;

export function createGraphQLTransport(options: GraphQLOptions = {}): Transport {
  const url = options.url ?? `${globalThis.location?.origin ?? ""}/graphql`;
  const request = options.fetch ?? ((input, init) => globalThis.fetch(input, init));
  const plans = options.tables ?? tablesOfPulso;
  const timezone = options.timezone ?? "America/Lima";

  async function ask<T>(query: string, variables: object, signal: AbortSignal | undefined): Promise<T> {
    const headers = new Headers({ "Content-Type": "application/json" });
    if (options.token) headers.set("Authorization", `Bearer ${options.token}`);
    let response: Response;
    let body: { data?: T | null; errors?: { message: string }[] } | null;
    try {
      const init: RequestInit = { method: "POST", headers, body: JSON.stringify({ query, variables }) };
      response = await request(url, signal ? { ...init, signal } : init);
      body = await response.json().catch(() => null);
    } catch (error) {
      throw isAbort(error) ? error : asETLError(error);
    }
    const faults = body?.errors?.map(({ message }) => message).join("; ");
    if (!response.ok && !faults) throw refusal(response, body);
    if (faults || !body?.data) throw new ETLError(faults ?? "the answer is no GraphQL", response.status);
    return body.data;
  }

  async function runs(filter: object, limit: number | null, signal: AbortSignal | undefined): Promise<Run[]> {
    const { runsOrError } = await ask<{ runsOrError: Fault & { results?: Run[] } }>(
      runsQuery,
      { filter, limit },
      signal,
    );
    if (!runsOrError.results) throw new ETLError(runsOrError.message ?? runsOrError.__typename);
    return runsOrError.results;
  }

  /** What launches each table: its own job or, if there are very many tables, a selection of Dagster's job of all assets. */
  async function selectors(tables: string[], signal: AbortSignal | undefined) {
    type Repository = { name: string; location: { name: string } };
    type Node = { assetKey: { path: string[] }; repository: Repository; jobNames: string[] };
    const assetKeys = tables.map((table) => ({ path: [table] }));
    const { assetNodes } = await ask<{ assetNodes: Node[] }>(assetLocation, { assetKeys }, signal);
    return (table: string) => {
      const found = assetNodes.find(({ assetKey }) => assetKey.path.join("/") === table);
      if (!found) throw new ETLError(`no code location of Dagster's has the asset ${table}`);
      const { name, location } = found.repository;
      const jobName = `refresh_${table}`;
      return {
        repositoryName: name,
        repositoryLocationName: location.name,
        ...(found.jobNames.includes(jobName)
          ? { jobName }
          : { jobName: WHOLE_GRAPH, assetSelection: [{ path: [table] }] }),
      };
    };
  }

  async function why(runId: string, signal: AbortSignal | undefined): Promise<string> {
    type Event = {
      message?: string;
      failureMetadata?: { description?: string | null } | null;
      error?: { message: string } | null;
    };
    const { logsForRun } = await ask<{ logsForRun: { events?: Event[] } }>(runFailure, { runId }, signal);
    const reasons = (logsForRun.events ?? []).map(
      (event) => event.failureMetadata?.description || event.error?.message || event.message,
    );
    return reasons.find(Boolean)?.trim() ?? "the run failed; see its page in Dagster";
  }

  function tablesOf(run: Run): string[] {
    const tag = tagOf(run, TABLE);
    if (tag) return [tag];
    if (run.assetSelection) return run.assetSelection.map(({ path }) => path.join("/"));
    const subject = run.jobName.replace(/^refresh_/, "");
    return plans.filter(({ table, group }) => [table, group, "all"].includes(subject)).map(({ table }) => table);
  }

  /** One run for each table, with these tags. The run itself finds its days. */
  async function launchTables(
    tables: string[],
    tags: Record<string, string>,
    signal: AbortSignal | undefined,
  ): Promise<TableRun[]> {
    const selectorOf = await selectors(tables, signal);
    const executionMetadata = { tags: Object.entries(tags).map(([key, value]) => ({ key, value })) };
    const params = tables.map((table) => ({ selector: selectorOf(table), executionMetadata }));
    type Launched = Fault & { run?: { runId: string } };
    type Answer = { launchMultipleRuns: Fault & { launchMultipleRunsResult?: Launched[] } };
    const { launchMultipleRuns } = await ask<Answer>(launchRuns, { params }, signal);
    const results = launchMultipleRuns.launchMultipleRunsResult;
    if (!results) throw new ETLError(launchMultipleRuns.message ?? launchMultipleRuns.__typename);
    return tables.map((table, place): TableRun => {
      const { run, message, __typename } = results[place] as Launched;
      return run
        ? { table, run_id: run.runId, state: "queued" }
        : { table, state: "failed", message: message ?? __typename };
    });
  }

  async function status(signal?: AbortSignal): Promise<Status> {
    const keys = plans.map(({ table }) => ({ path: [table] }));
    const [{ assetNodes }, underWay, recent] = await Promise.all([
      ask<{ assetNodes: AssetNode[] }>(freshnessQuery, { assetKeys: keys }, signal),
      runs({ statuses: UNDER_WAY }, null, signal),
      runs({}, RECENT, signal),
    ]);
    const now = new Date();
    const tables = plans.map((plan): TableStatus => {
      const node = assetNodes.find(({ assetKey }) => assetKey.path.join("/") === plan.table);
      const mine = (run: Run) => tablesOf(run).includes(plan.table);
      return tableStatus(
        plan,
        node,
        underWay.filter(mine),
        recent.find((run) => mine(run) && run.status in ENDS),
        now,
      );
    });
    const troubled = tables.some(({ status, freshness }) => status === "failed" || freshness === "stale");
    const updates = tables.flatMap(({ last_extracted_at }) => last_extracted_at ?? []).sort();
    return {
      status: troubled ? "degraded" : "ok",
      last_updated: updates.at(-1) ?? null,
      generated_at: now.toISOString(),
      timezone,
      dagster: true,
      total_tables: tables.length,
      successes: tables.filter(({ status }) => status === "success").length,
      failures: tables.filter(({ status }) => status === "failed").length,
      running: tables.filter(({ run_under_way }) => run_under_way).length,
      tables,
      recent_activity: [],
    };
  }

  return {
    scope: scopeOf(url, options.token),
    status,

    async launch({ force, tables }, signal) {
      const wanted = tables
        ? tables.map((table) => planOf(plans, table))
        : plans.filter(({ group }) => group === "dashboard");
      const startedAt = new Date().toISOString();
      const pipelineId = randomId();
      const parts = await launchTables(
        wanted.map(({ table }) => table),
        { [PIPELINE]: pipelineId, ...(force ? { [FORCE]: "true" } : {}) },
        signal,
      );
      return refreshOf(pipelineId, parts, startedAt);
    },

    async progress(refresh, signal) {
      const runIds = Object.values(refresh.runs).flatMap(({ run_id }) => run_id ?? []);
      if (runIds.length === 0) return refresh;
      // It looks by tag too, because a run that crashed is launched again with another id.
      const tags = [{ key: PIPELINE, value: refresh.pipeline_id }];
      const [own, named] = await Promise.all([runs({ tags }, null, signal), runs({ runIds }, null, signal)]);
      const parts = Object.values(refresh.runs).map(async (part): Promise<TableRun> => {
        const run =
          own.find((run) => part.run_id && tablesOf(run).includes(part.table)) ??
          named.find(({ runId }) => runId === part.run_id);
        if (!run) return part;
        const partitions = windowOf(run);
        // A run that is launched again keeps the tags of the first run.
        const skipped = partitions ? undefined : tagOf(run, SKIPPED);
        const state = skipped ? "skipped" : stateOf(run);
        return {
          ...part,
          run_id: run.runId,
          state,
          ...(skipped ? { message: skipped } : {}),
          partitions,
          started_at: instant(run.startTime),
          finished_at: instant(run.endTime),
          ...(state === "failed"
            ? { message: part.state === "failed" ? part.message : await why(run.runId, signal) }
            : {}),
        };
      });
      return refreshOf(refresh.pipeline_id, await Promise.all(parts), refresh.started_at);
    },
  };
}

function planOf(plans: readonly TablePlan[], table: string): TablePlan {
  const found = plans.find((plan) => plan.table === table);
  if (!found)
    throw new ETLError(`unknown table ${table}; known are ${plans.map((plan) => plan.table).join(", ")}`, 404);
  return found;
}

function refreshOf(pipelineId: string, parts: TableRun[], startedAt: string): Refresh {
  const states = new Set(parts.map(({ state }) => state));
  const running = states.has("queued") || states.has("running");
  const ends = parts.flatMap(({ finished_at }) => finished_at ?? []).sort();
  return {
    pipeline_id: pipelineId,
    status: running ? "running" : states.has("failed") || states.has("canceled") ? "failed" : "success",
    tables_requested: parts.map(({ table }) => table),
    runs: Object.fromEntries(parts.map((part) => [part.table, part])),
    started_at: startedAt,
    finished_at: running ? null : (ends.at(-1) ?? startedAt),
    status_url: "",
    already_running: false,
    requested_by: "graphql",
  };
}

function tableStatus(
  plan: TablePlan,
  node: AssetNode | undefined,
  underWay: Run[],
  last: Run | undefined,
  now: Date,
): TableStatus {
  const newest = node?.assetMaterializations[0];
  const extractedAt = newest ? new Date(Number(newest.timestamp)) : null;
  const age = extractedAt ? (now.getTime() - extractedAt.getTime()) / 1000 : null;
  const failed = last !== undefined && last.status !== "SUCCESS";
  const freshness = newest ? (FRESHNESS[node?.freshnessStatusInfo?.freshnessStatus ?? ""] ?? "due") : "never";
  const run = underWay.find(({ status }) => !WAITING.includes(status)) ?? underWay.at(-1);
  return {
    table: plan.table,
    title: plan.table,
    subtitle: "",
    description: "",
    group: plan.group,
    state: failed ? "failed" : freshness,
    status: failed ? "failed" : last || newest ? "success" : "never",
    freshness,
    age_seconds: age,
    refresh_every_seconds: plan.refresh_every_seconds,
    last_extracted_at: extractedAt?.toISOString() ?? null,
    last_partition: newest?.partition ?? null,
    run_id: newest?.runId ?? null,
    run_under_way: run
      ? { run_id: run.runId, state: stateOf(run), partitions: windowOf(run), started_at: instant(run.startTime) }
      : null,
    next_due: null,
    recovery_attempts: 0,
  };
}

function stateOf(run: Run): TableRun["state"] {
  return ENDS[run.status] ?? (WAITING.includes(run.status) ? "queued" : "running");
}

function tagOf(run: Run, key: string): string | undefined {
  return run.tags.find((tag) => tag.key === key)?.value;
}

function windowOf(run: Run): string | null {
  const [start, end] = [tagOf(run, RANGE_START), tagOf(run, RANGE_END)];
  return start === end ? (start ?? null) : `${start}..${end}`;
}

function instant(seconds: number | null): string | null {
  return seconds === null ? null : new Date(seconds * 1000).toISOString();
}

function randomId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
