import { describe, expect, it } from "vitest";
import { bytes, cost, count, day, days, distance, duration, instant } from "../page/src/format";
import { progressOf } from "../page/src/live";
import { explainFailure, explainRefusal, overall } from "../page/src/words";
import { ETLError } from "../src";
import { status, tableStatus } from "./samples";

describe("the words of the page", () => {
  it.each([
    [
      "dashboard_data 2026-11-19..2026-11-25: BigQuery does not know the table; check dataset, prefix and location. 404",
      "BigQuery no encuentra la tabla de origen",
    ],
    ["operation_data 2026-11-25: BigQuery is failing for now, a later attempt may pass. 503", "BigQuery no responde"],
    [
      "operation_data 2026-11-25: BigQuery gave 10 of the result's 20 rows; a later attempt may pass",
      "BigQuery no responde",
    ],
    ["operation_data 2026-11-25: BigQuery refuses access; grant the account", "BigQuery no da acceso"],
    ["BigQuery: no usable credentials; set GOOGLE_APPLICATION_CREDENTIALS", "BigQuery no da acceso"],
    ["operation_data 2026-11-25: BigQuery would bill more than the cap; narrow the range", "Consulta demasiado cara"],
    [
      "operation_data 2026-11-25: BigQuery had its query stopped: it ran longer than 0:15:00",
      "La carga tardó demasiado",
    ],
    ["stale: it ran for 0:31:00, its time-out is 0:30:00", "La carga tardó demasiado"],
    ["stale: its process or its server session was killed", "La carga se interrumpió"],
    [
      "dashboard_data: refused to delete: 2026-11-24: 1 of 30 rows are left; at least 50% must stay",
      "Faltan muchas filas en el origen",
    ],
    ["dashboard_data 2026-11-25: PostgreSQL is away: server closed the connection", "PostgreSQL no está disponible"],
    ["dashboard_data 2026-11-25: PostgreSQL has no memory left: out of memory", "PostgreSQL no está disponible"],
    ["dashboard_data 2026-11-25: PostgreSQL does not let us in: connection failed", "PostgreSQL no está disponible"],
    [
      "dashboard_data 2026-11-25: PostgreSQL refuses what is beyond its limits: index row size 9000",
      "Datos de origen inválidos",
    ],
    [
      "dashboard_data 2026-11-25: PostgreSQL: another writer held the table too long; try again later",
      "PostgreSQL no está disponible",
    ],
    [
      "dashboard_data 2026-11-25: the source does not fit the declaration: column cuentas is missing",
      "Datos de origen inválidos",
    ],
    ["dashboard_data 2026-11-25: the source holds 2 rows of the primary key (archivo=A)", "Datos de origen inválidos"],
    ["something else", "Falló la actualización"],
  ])("name the cause of %j", (text, title) => {
    expect(explainFailure(text).title).toBe(title);
  });

  it.each([
    [new ETLError("fetch failed"), "Sin conexión con Pulso"],
    [new ETLError("no", 403), "Sin permiso"],
    [new ETLError("ana may launch 5 per 1 minute; try again later", 429, 1), "Demasiadas actualizaciones seguidas"],
    [new ETLError("the day's BigQuery budget is spent: 1 of 1", 429, 3600), "Presupuesto de BigQuery agotado"],
    [new ETLError("Dagster's webserver does not answer", 503, 5), "Dagster no responde"],
    [new ETLError("PostgreSQL does not answer: refused", 503, 5), "PostgreSQL no está disponible"],
    [new ETLError("unknown table", 404), "Pulso no aceptó el pedido"],
  ])("say why %s was refused", (error, title) => {
    expect(explainRefusal(error).title).toBe(title);
  });

  it("put everything in one sentence", () => {
    expect(overall(status()).text).toBe("Los datos están al día");
    const tables = [
      tableStatus({ status: "failed" }),
      tableStatus({ freshness: "stale" }),
      tableStatus({ freshness: "never" }),
    ];
    expect(overall(status({ tables }))).toMatchObject({
      tone: "bad",
      why: "1 tabla con error, 1 tabla vencida, 1 tabla sin datos",
    });
    expect(overall(status({ tables: [tableStatus({ freshness: "never" })] })).text).toBe("Faltan datos por cargar");
    expect(overall(status({ dagster: false })).text).toMatch(/Dagster no responde/);
  });
});

describe("numbers and instants", () => {
  it("are those of Peru", () => {
    expect([count(1), count(1, "fila"), count(12345, "fila"), count(null)]).toEqual([
      "1",
      "1 fila",
      "12,345 filas",
      "—",
    ]);
    expect([duration(2.44), duration(184), duration(7500), duration(null)]).toEqual([
      "2.4 s",
      "3 min 4 s",
      "2 h 5 min",
      "—",
    ]);
    expect([cost(0), cost(0.00005), cost(0.0123), cost(undefined)]).toEqual([
      "US$ 0.00",
      "menos de US$ 0.0001",
      "US$ 0.0123",
      "—",
    ]);
    expect([bytes(0), bytes(10_485_760)]).toEqual(["0 B", "10.5 MB"]);
    expect(instant("2026-11-25T04:59:00Z")).toMatch(/^24 nov.*23:59$/);
    expect(day("2026-11-25")).toMatch(/^25 nov/);
    expect(days("2026-11-19..2026-11-25")).toMatch(/^del 19 nov.* al 25 nov/);
  });

  it.each([
    [0, "ahora"],
    [-40, "hace 1 minuto"],
    [-12 * 60 - 20, "hace 12 minutos"],
    [-3 * 3600, "hace 3 horas"],
    [-3 * 86_400, "hace 3 días"],
    [2 * 3600, "en 2 horas"],
  ])("%d seconds from now are %s", (seconds, text) => {
    const now = Date.parse("2026-11-25T15:00:00Z");
    expect(distance(new Date(now + seconds * 1000).toISOString(), now)).toBe(text);
  });
});

describe("the progress of a table", () => {
  const asked = {
    table: "dashboard_data",
    state: "success",
    run_id: "r1",
    finished_at: "2026-11-25T15:00:00Z",
  } as const;

  it("is the run under way before all else", () => {
    const table = tableStatus({ run_under_way: { run_id: "r2", state: "running", rows: 50 } });
    expect(progressOf(table, asked)).toMatchObject({ state: "running", rows: 50 });
  });

  it("is forgotten once something else has happened", () => {
    expect(progressOf(tableStatus({ run_id: "r1" }), asked)?.state).toBe("success");
    expect(progressOf(tableStatus({ run_id: "r2" }), asked)).toBeNull();
    const failed = { ...asked, state: "failed" } as const;
    expect(progressOf(tableStatus({ last_extracted_at: "2026-11-25T14:00:00Z" }), failed)?.state).toBe("failed");
    expect(progressOf(tableStatus({ last_extracted_at: "2026-11-25T16:00:00Z" }), failed)).toBeNull();
  });
});
