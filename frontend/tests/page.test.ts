import { describe, expect, it } from "vitest";
import openapi from "../openapi.json";
import { bytes, cost, count, day, days, distance, duration, instant, placeOf, writeTimesIn } from "../page/src/format";
import { progressOf } from "../page/src/live";
import { CAUSES, explain, explainRefusal, overall } from "../page/src/words";
import { type Cause, ETLError } from "../src";
import { status, tableStatus } from "./samples";

function refusedBy(cause: Cause, status: number, retryAfter: number | null = null, retryable = false): ETLError {
  return new ETLError("some English text", status, retryAfter, {
    failure: { cause, title: "", message: "some English text", retryable },
  });
}

describe("the words of the page", () => {
  it("tell every cause of the API, each with words of its own", () => {
    const causes = openapi.components.schemas.Cause.enum as Cause[];
    expect(Object.keys(CAUSES).sort()).toEqual([...causes].sort());
    for (const cause of causes) {
      const found = explain({ cause, title: "", message: "some English text", retryable: false });
      expect(Object.values(found).every(Boolean)).toBe(true);
    }
    expect(new Set(causes.map((cause) => CAUSES[cause].title)).size).toBe(causes.length);
  });

  it.each([
    [new ETLError("fetch failed"), "Sin conexión con Pulso", /revise su red/],
    [refusedBy("forbidden", 403), "Sin permiso", /pida una clave/],
    [refusedBy("rate_limited", 429, 1, true), "Demasiados pedidos seguidos", /en 1 segundo/],
    [refusedBy("budget", 429, 3600), "Sin presupuesto para la carga", /puede forzar la carga/],
    [refusedBy("launcher_unavailable", 503, 5, true), "Dagster no responde", /en 5 segundos/],
    [refusedBy("destination_unavailable", 503, 5, true), "PostgreSQL no está disponible", /en 5 segundos/],
    [refusedBy("request", 404), "Pulso no aceptó el pedido", /corrija el pedido/],
  ])("say why %s was refused", (error, title, todo) => {
    expect(explainRefusal(error).title).toBe(title);
    expect(explainRefusal(error).todo).toMatch(todo);
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
    writeTimesIn("America/Lima");
    expect(instant("2026-11-25T04:59:00Z")).toMatch(/^24 nov.*23:59$/);
    writeTimesIn("America/Santiago");
    expect(instant("2026-11-25T04:59:00Z")).toMatch(/^25 nov.*01:59$/);
    expect(["America/Lima", "America/Bogota", "UTC"].map(placeOf)).toEqual(["de Lima", "de Bogotá", "UTC"]);
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
