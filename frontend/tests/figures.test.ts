import { describe, expect, it } from "vitest";
import openapi from "../openapi.json";
import { whyNotDays } from "../page/src/Download";
import { amount, difference, MARKS, marksOf, nameOf, reachOf, trendOf } from "../page/src/figures";
import { dayName, earlier, weekday, writeTimesIn } from "../page/src/format";
import type { Comparison, FigureStatus } from "../src";

const NOW = Date.parse("2026-11-25T16:05:00Z");
const YESTERDAY: Comparison = { day: "2026-11-24", value: "760", difference: "38", percent: "5.0000", marks: [] };
const FIGURE: FigureStatus = {
  table: "operation_data",
  figure: "gestiones",
  title: "Gestiones",
  unit: "count",
  over_days: true,
  today: { day: "2026-11-25", value: "812", marks: ["goes_on"] },
  until: "2026-11-25T16:05:00Z",
  hour: 11,
  value_at_hour: "798",
  yesterday: YESTERDAY,
  days: [
    { day: "2026-11-23", value: null, marks: ["missing"] },
    { day: "2026-11-24", value: "1760", marks: [] },
    { day: "2026-11-25", value: "812", marks: ["goes_on"] },
  ],
};
writeTimesIn("America/Lima");
/** Without the narrow and no-break spaces of Intl. */
const plain = (text: string) => text.replace(/\s/g, " ");

describe("a key figure", () => {
  it("is written with its unit, and no digit of it is lost", () => {
    expect(plain(amount("12345678901234567.89", "PEN"))).toBe("S/ 12,345,678,901,234,567.89");
    expect(plain(amount("12345.67", "PEN", true))).toBe("S/ 12,346");
    expect(plain(amount("9999.5", "PEN", true))).toBe("S/ 9,999.50");
    expect(amount("812", "count")).toBe("812");
    expect(amount("45.25", "percent")).toBe("45.3 %");
    expect(amount(null, "PEN")).toBe("—");
  });

  it.each([
    [{ difference: "38", percent: "5.0000" }, "count", "+38 (+5.0 %)"],
    [{ difference: "-1200.5", percent: "-0.25" }, "PEN", "−S/ 1,200.50 (−0.3 %)"],
    [{ difference: "-1.25", percent: null }, "percent", "−1.3 puntos"],
    [{ difference: "0", percent: "0.0000" }, "count", "igual"],
    [{ difference: null, percent: null }, "count", ""],
  ] as const)("beside %o is %s", (found, unit, told) => {
    expect(plain(difference({ day: "2026-11-24", marks: [], ...found }, unit))).toBe(told);
  });

  it("says which part of which day it covers", () => {
    expect(reachOf(FIGURE, NOW)).toBe("hoy, hasta las 11:05");
    expect(nameOf(YESTERDAY, FIGURE, NOW, false)).toBe("ayer a las 11:00");
    expect(nameOf({ ...YESTERDAY, day: "2026-11-18" }, FIGURE, NOW, true)).toBe("miércoles 18 nov. a las 11:00");
    const daily = { ...FIGURE, hour: null };
    expect(nameOf(YESTERDAY, daily, NOW, false)).toBe("ayer, día completo");
    const held = { as_of: "2026-11-24T16:05:00Z", loaded_at: "2026-11-24T11:10:00Z" };
    expect(nameOf({ ...YESTERDAY, ...held }, daily, NOW, false)).toBe("ayer a las 11:05 (carga de las 06:10)");
    expect(nameOf({ ...YESTERDAY, marks: ["cut_short"] }, daily, NOW, false)).toBe("ayer");
    expect(reachOf({ ...FIGURE, today: { day: "2026-11-24", value: "1", marks: [] } }, NOW)).toBe("ayer, día completo");
    expect(reachOf({ ...FIGURE, today: null }, NOW)).toBe("sin datos todavía");
  });

  it("says its trend in a sentence", () => {
    expect(trendOf(FIGURE)).toBe("3 días hasta el 25 nov.: mínimo 812 (25 nov.), máximo 1,760 (24 nov.).");
    expect(trendOf({ ...FIGURE, days: [] })).toBe("Sin datos.");
  });

  it("has words for every reason why a day is not whole", () => {
    expect(Object.keys(MARKS).sort()).toEqual([...openapi.components.schemas.DayMark.enum].sort());
    expect(marksOf({ marks: ["goes_on", "quarantined"] })).toBe("el día sigue, hay filas apartadas");
  });

  it("names days by the clocks of the deployment", () => {
    expect(dayName("2026-11-24", NOW)).toBe("ayer");
    expect(dayName("2026-11-20", NOW)).toBe("20 nov.");
    expect(weekday("2026-11-18")).toBe("miércoles 18 nov.");
    expect(earlier("2026-03-01", 1)).toBe("2026-02-28");
  });
});

describe("a download", () => {
  it.each([
    ["2026-11-01", "2026-11-25", null],
    ["2026-11-25", "2026-11-24", "El primer día debe ser anterior al último."],
    ["2025-01-01", "2026-11-25", "Elija 366 días como máximo."],
    ["", "2026-11-25", "Elija el primer día y el último."],
  ])("from %s to %s: %s", (from, to, reason) => {
    expect(whyNotDays(from, to)).toBe(reason);
  });
});
