import { describe, expect, it } from "vitest";
import openapi from "../openapi.json";
import { describeDay } from "../page/src/Calendar";
import {
  bytes,
  clockTime,
  cost,
  count,
  day,
  days,
  distance,
  duration,
  instant,
  placeOf,
  writeTimesIn,
} from "../page/src/format";
import { reasonsOf } from "../page/src/History";
import { KEPT_DAYS, keeping } from "../page/src/keeping";
import { progressOf } from "../page/src/live";
import {
  bannerOf,
  changeOf,
  errorReport,
  isOffline,
  nextRefresh,
  type Outlook,
  stateOf,
  titleOf,
  worstFirst,
} from "../page/src/state";
import { CAUSES, explain, explainNothing, explainRefusal } from "../page/src/words";
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
    [refusedBy("rate_limited", 429, 3600, true), "Demasiados pedidos seguidos", /a partir de hoy|a partir de mañana/],
    [refusedBy("budget", 429, 3600), "Sin presupuesto para la carga", /puede forzar la carga/],
    [refusedBy("launcher_unavailable", 503, 5, true), "Dagster no responde", /en un momento/],
    [refusedBy("destination_unavailable", 503, 5, true), "PostgreSQL no está disponible", /en un momento/],
    [refusedBy("request", 404), "Pulso no aceptó el pedido", /corrija el pedido/],
  ])("say why %s was refused", (error, title, todo) => {
    expect(explainRefusal(error).title).toBe(title);
    expect(explainRefusal(error).todo).toMatch(todo);
  });

  it("never promise that a request is repeated, and promise that the page asks again only where it does", () => {
    for (const error of [new ETLError("fetch failed"), refusedBy("launcher_unavailable", 503, 5, true)]) {
      expect(explainRefusal(error).next).toMatch(/la página no lo repite/);
      expect(explainNothing(error, 5).next).toBe("la página vuelve a preguntar sola cada 5 segundos.");
    }
    expect(explainNothing(refusedBy("forbidden", 403), 5).next).toMatch(/no vuelve a preguntar/);
  });
});

describe("the state of a table and of everything", () => {
  const NOW = Date.parse("2026-11-25T15:04:00Z");
  const HOUR = 3_600_000;
  const iso = (hours: number) => new Date(NOW + hours * HOUR).toISOString();
  const outlook = (more: Partial<Outlook> = {}): Outlook => ({
    now: NOW,
    offline: false,
    databaseAway: false,
    knownAt: NOW,
    ...more,
  });
  const fresh = tableStatus({ due_at: iso(1), stale_after: iso(7), next_due: iso(1) });

  it("ages in the browser, and only what was well ages", () => {
    expect([0, 1, 6.9, 7.1].map((hours) => stateOf(fresh, NOW + hours * HOUR))).toEqual([
      "fresh",
      "due",
      "due",
      "stale",
    ]);
    for (const state of ["failed", "stale", "never"] as const) {
      expect(stateOf({ ...fresh, state }, NOW + 9 * HOUR)).toBe(state);
    }
    expect(bannerOf(status({ tables: [fresh] }), outlook({ now: NOW + 8 * HOUR }))).toMatchObject({ tone: "warn" });
  });

  it("counts a table once, names it, and puts problems on top", () => {
    const tables = [
      tableStatus({ table: "a" }),
      tableStatus({ table: "b", state: "never", status: "never" }),
      tableStatus({ table: "c", state: "stale", freshness: "stale" }),
      tableStatus({ table: "d", state: "failed", status: "failed", freshness: "stale" }),
    ];
    expect(worstFirst(tables, NOW).map(({ table }) => table)).toEqual(["d", "c", "b", "a"]);
    const banner = bannerOf(status({ tables }), outlook());
    expect(banner).toMatchObject({ tone: "bad", text: "Hay datos que requieren atención" });
    expect(banner.troubled.map(({ table }) => table)).toEqual(["d", "c", "b"]);
    expect(bannerOf(status({ tables: tables.slice(0, 2) }), outlook()).text).toBe("Faltan datos por cargar");
    expect(bannerOf(status(), outlook()).text).toBe("Los datos están al día");
    expect(titleOf(banner)).toBe("✕ Hay datos que requieren atención · Pulso");
  });

  it("is never green while something is away, and says since when", () => {
    writeTimesIn("America/Lima");
    const away: [Partial<Outlook>, Parameters<typeof status>[0], RegExp, string | null][] = [
      [{ offline: true, now: NOW + HOUR }, {}, /^Sin conexión; datos de las 10:04$/, "no se sabe"],
      [{ databaseAway: true }, {}, /^PostgreSQL no responde; datos de las 10:04$/, "en pausa"],
      [{}, { dagster: false }, /^Dagster no responde/, "en pausa"],
      [{}, { daemon: false, daemon_seen_at: iso(-1) }, /detenidas$/, "en pausa"],
      [{}, { automation: false }, /^La actualización automática está apagada$/, "solo a pedido"],
      [{}, {}, /^Los datos están al día$/, "hoy 11:04"],
    ];
    for (const [more, told, text, next] of away) {
      const seen = outlook(more);
      const banner = bannerOf(status(told), seen);
      expect(banner.text).toMatch(text);
      expect(banner.tone === "good").toBe(next === "hoy 11:04");
      expect(nextRefresh(fresh, status(told), seen)).toBe(next);
    }
    expect(nextRefresh({ ...fresh, run_under_way: { run_id: "r", state: "running" } }, status(), outlook())).toBeNull();
  });

  it("is offline after two missed signals, however they are missed", () => {
    const heard = { connection: "live", heardAt: NOW, missed: 0 } as const;
    expect(isOffline(heard, NOW + 31_000)).toBe(false);
    expect(isOffline(heard, NOW + 33_000)).toBe(true);
    expect(isOffline({ ...heard, connection: "polling" }, NOW + 61_000)).toBe(false);
    expect(isOffline({ ...heard, missed: 1 }, NOW)).toBe(false);
    expect(isOffline({ ...heard, missed: 2 }, NOW)).toBe(true);
  });

  it("tells what a load changed", () => {
    const load = { inserted: 12, updated: 3, deleted: 1, unchanged: 900 } as Parameters<typeof changeOf>[0];
    expect(changeOf(load)).toBe("12 nuevas, 3 cambiadas, 1 quitada");
    expect(changeOf({ ...load, inserted: 0, updated: 0, deleted: 0 } as typeof load)).toBe("sin cambios");
    expect(changeOf({ ...load, inserted: null, updated: null, deleted: null } as typeof load)).toBe("");
    expect(errorReport({ Tabla: "Tablero", Corrida: null, Detalle: "x" })).toBe("Tabla: Tablero\nDetalle: x");
  });

  it("writes instants as people say them, in the zone of the days", () => {
    writeTimesIn("America/Lima");
    const told = ["2026-11-25T16:00:00Z", "2026-11-25T04:59:00Z", "2026-11-26T07:00:00Z"].map((at) =>
      clockTime(at, NOW),
    );
    expect(told).toEqual(["hoy 11:00", "ayer 23:59", "mañana 02:00"]);
    expect(clockTime("2026-11-20T15:00:00Z", NOW)).toMatch(/^20 nov.*10:00$/);
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

describe("a day", () => {
  it("is told with its rows, what is usual, and its last check", () => {
    writeTimesIn("America/Lima");
    const loaded = {
      day: "2026-11-25",
      state: "loaded",
      rows: 49,
      usual_rows: 100,
      loaded_at: "2026-11-25T15:04:00Z",
    } as const;
    expect(
      describeDay({ ...loaded, check: "failed", checked_at: "2026-11-25T17:04:00Z", unusual: true, gap: false }),
    ).toMatch(
      /^25 nov.*: cargado, 49 filas \(lo usual: 100\), 25 nov.*10:04; la última revisión falló, 25 nov.*12:04$/,
    );
    const missing = { day: "2026-11-24", state: "missing", unusual: false, gap: true } as const;
    expect(describeDay(missing)).toMatch(/^24 nov.*: falta entre días cargados$/);
  });
});

describe("the token", () => {
  it("stays with the tab, and on the device only where the person says so, for a time", () => {
    let now = 0;
    const [tab, device] = [sessionStorage, localStorage];
    tab.clear();
    const acme = keeping("/tenants/acme/", tab, device, () => now);
    acme.keep("t0ken", false);
    expect([acme.find(), device.length]).toEqual(["t0ken", 0]);
    tab.clear();
    expect(acme.find()).toBeNull();
    acme.keep("t0ken", true);
    tab.clear();
    expect(acme.find()).toBe("t0ken");
    expect(keeping("/tenants/globex/", tab, device, () => now).find()).toBeNull();
    now = KEPT_DAYS * 86_400_000;
    expect([acme.find(), device.length]).toEqual([null, 0]);
    acme.keep("t0ken", true);
    acme.forget();
    expect([acme.find(), tab.length, device.length]).toEqual([null, 0, 0]);
    device.setItem("pulso-token/tenants/acme", "nonsense");
    expect(acme.find()).toBeNull();
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

it("the history tells why days were read: once for all, or for each range", () => {
  const owed = { start: "2026-11-19", end: "2026-11-21", ground: "owed", why: "owed" } as const;
  const asked = { start: "2026-11-25", end: "2026-11-25", ground: "asked", why: "asked for" } as const;
  expect(reasonsOf({ reasons: [owed, { ...owed, start: "2026-11-23", end: "2026-11-23" }] })).toBe(
    "todavía podía cambiar después de la última lectura",
  );
  expect(reasonsOf({ reasons: [owed, asked] })).toBe(
    "del 19 nov. al 21 nov.: todavía podía cambiar después de la última lectura; 25 nov.: alguien lo pidió",
  );
  expect([reasonsOf({ reasons: null }), reasonsOf({ reasons: [] })]).toEqual(["—", "—"]);
});
