import { describe, expect, it } from "vitest";
import { biggest, change, newest, placesOf, rowsOf, sentence } from "../page/src/movements";
import type { FigureMovement, LoadChanges, TableChanges } from "../src";

const plain = (text: string) => text.replaceAll("\u00a0", " ");

function moved(day: string, found: string | null, more: Partial<FigureMovement> = {}): FigureMovement {
  const [before, after] = ["84120.50", "96460.50"];
  return { day, figure: "recupero", title: "Recupero", unit: "PEN", before, after, change: found, ...more };
}

function load(load_id: number, movements: FigureMovement[], more: Partial<LoadChanges> = {}): LoadChanges {
  const days = [{ day: "2026-11-26", new: 0, changed: 5, gone: 0, counted: 3 }];
  return {
    load_id,
    run_id: "r",
    committed_at: "2026-11-26T20:00:00Z",
    undoable: true,
    movements,
    days,
    ...more,
  } as LoadChanges;
}

function table(name: string, ...loads: LoadChanges[]): TableChanges {
  return { table: name, counted_by: "archivo", loads, older: null };
}

describe("movements", () => {
  it("are told with sign, currency and place", () => {
    const one = load(2, [moved("2026-11-26", "12340.00")]);
    const changes = table("dashboard_data", one);
    const told = sentence({ movement: one.movements[0] as FigureMovement, load: one, changes });
    expect(plain(told)).toBe("26 nov.: recupero +S/ 12,340 en 3 archivos");
    expect(plain(change(moved("2026-11-26", "-1.5")))).toBe("−S/ 1.50");
    expect(plain(change(moved("2026-11-26", "-2.5", { unit: "percent" })))).toBe("−2.5 puntos");
    expect(plain(change(moved("2026-11-26", null, { unit: "percent", before: null, after: "50" })))).toBe(
      "de — a 50.0 %",
    );
  });

  it("of all tables are in one order: money first, then the biggest", () => {
    const [small, big] = [moved("2026-11-25", "-18"), moved("2026-11-26", "1000")];
    const calls = moved("2026-11-26", "999999", { unit: "count", figure: "gestiones", title: "Gestiones" });
    const found = biggest([table("operation_data", load(3, [calls])), table("dashboard_data", load(2, [small, big]))]);
    expect(found.map(({ movement }) => movement.change)).toEqual(["1000", "-18", "999999"]);
  });

  it("of loads that were undone are left out", () => {
    const undone = load(2, [moved("2026-11-26", "1")], { undone_by: 3 });
    const changes = table("dashboard_data", load(3, [moved("2026-11-26", "-1")], { undoes: 2 }), undone, load(1, []));
    expect(newest(changes)?.load_id).toBe(1);
    expect(biggest([changes])).toEqual([]);
  });

  it("say where a day changed, and how many rows", () => {
    const day = { day: "2026-11-26", new: 1, changed: 4, gone: 0, counted: 1 };
    expect(placesOf(day, "archivo")).toBe("1 archivo");
    expect(placesOf({ ...day, counted: null }, "archivo")).toBe("5 filas");
    expect(placesOf(undefined, "archivo")).toBe("");
    expect(rowsOf(day)).toBe("1 nueva, 4 cambiadas");
  });
});
