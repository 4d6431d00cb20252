import type { Spent, Costs as Told } from "../../src";
import { bytes, cost } from "./format";

const SPANS: readonly { name: string; of: (costs: Told) => Spent }[] = [
  { name: "Hoy", of: ({ today }) => today },
  { name: "Este mes", of: ({ month }) => month },
  { name: "Previsto a fin de mes", of: ({ month_end }) => month_end },
];

/** What BigQuery billed, and what it did not have to bill, today, this month, and by the end of the month. */
export function Costs({ costs }: { costs: Told }) {
  return (
    /* biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls, and must do so by keyboard */
    <section className="scroll" aria-label="Costos de BigQuery" tabIndex={0}>
      <table className="list costs">
        <caption>Consultas a BigQuery: lo facturado y lo evitado</caption>
        <thead>
          <tr>
            <th scope="col">Período</th>
            <th scope="col">Facturado</th>
            <th scope="col">Evitado</th>
          </tr>
        </thead>
        <tbody>
          {SPANS.map(({ name, of }) => {
            const spent = of(costs);
            return (
              <tr key={name}>
                <th scope="row">{name}</th>
                <td>{amount(spent.bytes_billed, spent.cost_usd)}</td>
                <td>{amount(spent.bytes_avoided, spent.avoided_usd)}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </section>
  );
}

/** Bytes with what they cost, as far as bytes cost anything. */
export function amount(size: number | null | undefined, usd: number | null | undefined): string {
  return usd == null ? bytes(size) : `${bytes(size)} (${cost(usd)})`;
}
