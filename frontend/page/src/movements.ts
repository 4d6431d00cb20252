/** How movements of figures are written: pure functions of what the API tells. */
import type { DayChanged, FigureMovement, LoadChanges, TableChanges } from "../../src";
import { amount } from "./figures";
import { count, day } from "./format";

const UNITS: FigureMovement["unit"][] = ["PEN", "count", "percent"];

/** A movement and the load that made it. */
export interface Moved {
  movement: FigureMovement;
  load: LoadChanges;
  changes: TableChanges;
}

/** The newest load of each table that is not undone, if it moved figures: the biggest movements first, money before counts. */
export function biggest(tables: readonly TableChanges[]): Moved[] {
  const found = tables.flatMap((changes) => {
    const load = newest(changes);
    return load ? load.movements.map((movement) => ({ movement, load, changes })) : [];
  });
  const size = ({ movement }: Moved) => Math.abs(Number(movement.change ?? 0));
  const rank = ({ movement }: Moved) => UNITS.indexOf(movement.unit);
  return found.sort((one, other) => rank(one) - rank(other) || size(other) - size(one));
}

/** The newest load of a table that changed rows, and is neither undone nor an undoing. */
export function newest({ loads }: TableChanges): LoadChanges | undefined {
  return loads.find(({ undoes, undone_by }) => undoes == null && undone_by == null);
}

/** A movement in words: "26 nov.: recupero +S/ 12,340.00 en 3 archivos". */
export function sentence({ movement, load, changes }: Moved): string {
  const where = placesOf(
    load.days.find(({ day }) => day === movement.day),
    changes.counted_by,
  );
  return `${day(movement.day)}: ${movement.title.toLowerCase()} ${change(movement, true)}${where && ` en ${where}`}`;
}

/** By how much a figure rose or fell, with its sign and unit; from what to what if it had no value. `short`: as in `amount`. */
export function change({ before, after, change: found, unit }: FigureMovement, short = false): string {
  if (found == null) return `de ${amount(before, unit, short)} a ${amount(after, unit, short)}`;
  const size = amount(found.replace("-", ""), unit, short);
  return `${found.startsWith("-") ? "−" : "+"}${unit === "percent" ? size.replace(" %", " puntos") : size}`;
}

/** Where a day changed: "3 archivos", or "5 filas" if only their number is known. */
export function placesOf(one: DayChanged | undefined, column: string | null): string {
  if (!one) return "";
  if (one.counted != null && column) return count(one.counted, column);
  return count(one.new + one.changed + one.gone, "fila");
}

/** What a load did to the rows of a day: "1 nueva, 4 cambiadas". */
export function rowsOf({ new: fresh, changed, gone }: DayChanged): string {
  const parts = [
    [fresh, "nueva"],
    [changed, "cambiada"],
    [gone, "quitada"],
  ] as const;
  return parts
    .filter(([rows]) => rows)
    .map(([rows, word]) => count(rows, word))
    .join(", ");
}
