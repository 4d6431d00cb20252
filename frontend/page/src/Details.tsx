import { useQuery } from "@tanstack/react-query";
import { useId } from "react";
import { type ETLClient, type SourceToFresh, type Status, type TableStatus, tableQueryOptions } from "../../src";
import { ChangeLog } from "./Changes";
import { amount, Costs } from "./Costs";
import { bytes, cost, count, days, distance, duration, instant } from "./format";
import { History } from "./History";
import { OneByOne } from "./later";
import { changeOf } from "./state";

interface Props {
  client: ETLClient;
  status: Status;
  now: number;
  isAdmin: boolean;
}

/** Costs, versions, durations and histories: what engineers ask. */
export function Engineers({ client, status, now, isAdmin }: Props) {
  return (
    <details className="engineers">
      <summary>Para ingenieros: filas, costos, versiones, duraciones, historial y cambios</summary>
      <p className="muted">
        Dagster {status.dagster ? "responde" : "no responde"}
        {status.daemon_seen_at &&
          `; última señal de su servicio: ${instant(status.daemon_seen_at)} (${distance(status.daemon_seen_at, now)})`}
        .
      </p>
      {status.costs && <Costs costs={status.costs} />}
      <div className="cards">
        <OneByOne>
          {status.tables.map((table) => (
            <Details key={table.table} {...{ client, table, now, isAdmin }} />
          ))}
        </OneByOne>
      </div>
    </details>
  );
}

interface DetailsProps {
  client: ETLClient;
  table: TableStatus;
  now: number;
  isAdmin: boolean;
}

function Details({ client, table, now, isAdmin }: DetailsProps) {
  const { data: detail } = useQuery(tableQueryOptions(client, table.table));
  const id = useId();
  const { title, subtitle } = table;
  const load = table.last_load;
  return (
    <section className="panel card" aria-labelledby={id}>
      <header>
        <h3 id={id}>{title}</h3>
        <p className="muted">
          <code>{table.table}</code> · {subtitle}
        </p>
      </header>
      <dl className="facts">
        <Fact name="Filas en la tabla">{count(table.rows)}</Fact>
        <Fact name="La última cambió">{changeOf(load) || "—"}</Fact>
        <Fact name="Filas leídas">{count(load?.records)}</Fact>
        <Fact name="Igual a BigQuery">
          {table.last_extracted_at
            ? `${instant(table.last_extracted_at)} (${distance(table.last_extracted_at, now)})`
            : "—"}
        </Fact>
        <Fact name="Último día">{table.last_partition ? days(table.last_partition) : "—"}</Fact>
        <Fact name="Versión">{count(table.data_version)}</Fact>
        <Fact name="Duración">{duration(load?.duration_seconds)}</Fact>
        <Fact name="Costo">
          {`${cost(load?.estimated_cost_usd)}${load?.bytes_billed == null ? "" : ` (${bytes(load.bytes_billed)})`}`}
        </Fact>
        <Fact name="Facturado hoy">{amount(table.costs?.today.bytes_billed, table.costs?.today.cost_usd)}</Fact>
        <Fact name="Evitado hoy">{amount(table.costs?.today.bytes_avoided, table.costs?.today.avoided_usd)}</Fact>
        <Fact name="Facturado este mes">{amount(table.costs?.month.bytes_billed, table.costs?.month.cost_usd)}</Fact>
        <Fact name="Evitado este mes">{amount(table.costs?.month.bytes_avoided, table.costs?.month.avoided_usd)}</Fact>
        <Fact name="Del origen a la tabla">{table.source_to_fresh ? waits(table.source_to_fresh) : "—"}</Fact>
        {table.rows_lost != null && (
          <Fact name="Filas perdidas">{`${count(table.rows_lost)} de ${table.partitions_lost}: ${table.restored_by}`}</Fact>
        )}
      </dl>
      <details className="card__history">
        <summary>
          Historial<span className="hidden"> de {title}</span>
        </summary>
        {detail ? (
          <History client={client} table={table.table} extractions={detail.extractions} title={title} />
        ) : (
          <p>Cargando…</p>
        )}
      </details>
      <details className="card__history">
        <summary>
          Cambios<span className="hidden"> de {title}</span>
        </summary>
        <ChangeLog client={client} table={table.table} title={title} isAdmin={isAdmin} />
      </details>
    </section>
  );
}

/** How long readers wait from a change of the source to fresh rows. */
function waits({ median_seconds, p95_seconds, loads, days }: SourceToFresh): string {
  const typical = `${duration(median_seconds)} (mediana), ${duration(p95_seconds)} (95 %)`;
  return `${typical}; ${count(loads)} ${loads === 1 ? "cambio" : "cambios"} en ${days} días`;
}

function Fact({ name, children }: { name: string; children: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}
