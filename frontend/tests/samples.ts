import type { Refresh, Status, TableRun, TableStatus } from "../src";

export function tableStatus(more: Partial<TableStatus> = {}): TableStatus {
  return {
    table: "dashboard_data",
    title: "Tablero de cobranzas",
    subtitle: "Indicadores por día, archivo, cartera y servicio",
    description: "Collection indicators",
    group: "dashboard",
    state: "fresh",
    status: "success",
    freshness: "fresh",
    refresh_every_seconds: 21600,
    last_extracted_at: "2026-11-25T15:00:00Z",
    records: 150,
    recovery_attempts: 0,
    run_under_way: null,
    ...more,
  };
}

export function status(more: Partial<Status> = {}): Status {
  return {
    status: "ok",
    last_updated: "2026-11-25T15:00:00Z",
    generated_at: "2026-11-25T15:04:00Z",
    timezone: "America/Lima",
    dagster: true,
    daemon: true,
    total_tables: 2,
    successes: 2,
    failures: 0,
    running: 0,
    tables: [tableStatus(), tableStatus({ table: "evolution_data" })],
    recent_activity: [],
    ...more,
  };
}

/** A refresh of tables in the given states. */
export function refresh(states: Record<string, TableRun["state"]>, more: Partial<Refresh> = {}): Refresh {
  const runs = Object.entries(states).map(([table, state]) => [table, { table, state, run_id: `run of ${table}` }]);
  const all = Object.values(states);
  const under_way = all.includes("queued") || all.includes("running");
  return {
    pipeline_id: "p1",
    status: under_way ? "running" : all.includes("failed") ? "failed" : "success",
    tables_requested: Object.keys(states),
    runs: Object.fromEntries(runs),
    started_at: "2026-11-25T15:04:02Z",
    status_url: "/api/v1/etl/refresh/p1",
    already_running: false,
    requested_by: "local",
    ...more,
  };
}
