"""Generates made-up source data for the call centre's BigQuery tables. The same seed gives the same data.

A portfolio keeps its accounts and its debt for a month, and works through them day by day: coverage, promises and payments
grow until the month ends. A day's rows depend only on the seed and on that day, so tomorrow's run does not change older days.
`revision` n > 0 adds the changes of a live source: late corrections of the last two days, rows that vanish, and new rows. Its
random numbers come from a stream of their own, so all other rows stay the same.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from google.api_core.exceptions import NotFound
from google.cloud import bigquery

from pulso_etl.bigquery.arrow import arrow_type
from pulso_etl.sync.zone import DEFAULT, Zone
from pulso_etl.tables.sources import SOURCES

CARTERAS = ("TEMPRANA", "ALTAS NUEVAS", "CUOTA FRACCIONADA", "GESTIÓN ESPECIAL", "REINCIDENTE NIÑEZ")
SERVICIOS = ("FIJA", "MOVIL")
NOMBRES = ("María Peña", "José Núñez", "Lucía Ibáñez", "Ángel Quispe", "Rocío Muñoz", "Iván Cáceres", "Noemí Ríos")
HOURS = {
    "weekday": np.array([0.02, 0.06, 0.1, 0.12, 0.12, 0.08, 0.05, 0.08, 0.1, 0.1, 0.08, 0.05, 0.03, 0.01]),
    "saturday": np.array([0.0, 0.1, 0.22, 0.26, 0.24, 0.14, 0.04, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    "sunday": np.array([0.0, 0.0, 0.3, 0.4, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
}
"""Share of the day's attempts in each hour from 7 to 20: a lunch break, Saturday mornings, the bot on Sundays."""
ATTEMPTS = {"weekday": 800, "saturday": 400, "sunday": 100}
ACCOUNTS = 400
DEFAULT_ROWS = 170
"""The numbers above apply to this many dashboard rows a day. With more or fewer rows they change in proportion."""
AGENTS = 14
NUMERIC = pa.decimal128(38, 9)
STAMP = pa.timestamp("us", "UTC")

BIGQUERY_TYPES = {
    pa.date32(): "DATE",
    pa.string(): "STRING",
    pa.int64(): "INT64",
    pa.float64(): "FLOAT64",
    pa.bool_(): "BOOL",
    NUMERIC: "NUMERIC",
    STAMP: "TIMESTAMP",
}
SCHEMAS: dict[str, pa.Schema] = {
    source: pa.schema([(name, arrow_type(kind)) for name, kind in columns.items()]) for source, columns in SOURCES.items()
}
PARTITIONED = {
    "dashboard_cobranzas": "fecha_foto",
    "asignaciones_clean": "fecha_foto",
    "gestiones_unificadas": "fecha_gestion",
}


@dataclass(frozen=True)
class SampleData:
    """The generator of `days` trailing days up to `today`, in the zone. `names` maps placeholders to full names.

    `dashboard_rows_per_day` sets the size of every table.
    """

    names: dict[str, str]
    today: date
    days: int = 30
    dashboard_rows_per_day: int = DEFAULT_ROWS
    seed: int = 7
    revision: int = 0
    zone: Zone = DEFAULT

    def tables(self) -> dict[str, pa.Table]:
        """Every source table by its placeholder."""
        window = [self.today - timedelta(days=back) for back in range(self.days - 1, -1, -1)]
        rows: dict[str, list[dict[str, Any]]] = {
            "dashboard_cobranzas": [row for day in window for row in self._dashboard(day)],
            "asignaciones_clean": [row for day in window for row in self._assignments(day)],
            "gestiones_unificadas": [row for day in window for row in self._attempts(day)],
            "agentes": [_agent(n) for n in range(AGENTS - 2)] + [{**_agent(3), "equipo": "EQUIPO NUEVO"}],
        }
        return {name: pa.Table.from_pylist(rows[name], schema=schema) for name, schema in SCHEMAS.items()}

    def seed_into(self, client: bigquery.Client) -> None:
        """Creates the dataset, the tables, and the views over them as in production, and replaces the tables' rows."""
        client.create_dataset(self.names["agentes"].rsplit(".", 1)[0], exists_ok=True)
        for name, table in self.tables().items():
            base = base_of(self.names, name)
            target = bigquery.Table(
                base,
                schema=[bigquery.SchemaField(f.name, BIGQUERY_TYPES[f.type]) for f in table.schema],
            )
            if name in PARTITIONED:
                target.time_partitioning = bigquery.TimePartitioning(field=PARTITIONED[name])
            client.create_table(target, exists_ok=True)
            load_table(client, base, table)
            if base != self.names[name]:
                _drop_table(client, self.names[name])
                client.query_and_wait(f"CREATE OR REPLACE VIEW `{self.names[name]}` AS SELECT * FROM `{base}`")  # noqa: S608 - our own names

    def _rng(self, day: date, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, day.toordinal(), stream])

    def _revised(self, day: date) -> bool:
        return self.revision > 0 and (self.today - day).days < 2

    def _change(self, day: date, stream: int, count: int) -> tuple[set[int], set[int], np.random.Generator]:
        """The effect of this revision on the day's `count` rows: vanished rows, corrected rows (5%), the random generator."""
        change = np.random.default_rng([self.seed, day.toordinal(), stream, self.revision])
        if not self._revised(day):
            return set(), set(), change
        order = [int(n) for n in change.permutation(count)]
        return set(order[:2]), set(order[2 : 2 + count // 20]), change

    def _stamp(self, day: date) -> datetime:
        return datetime(day.year, day.month, day.day, 23, 0, tzinfo=UTC) + timedelta(minutes=self.revision)

    def _scaled(self, count: int) -> int:
        return max(20, count * self.dashboard_rows_per_day // DEFAULT_ROWS)

    def _dashboard(self, day: date) -> Iterator[dict[str, Any]]:
        rng = self._rng(day.replace(day=1), 1)
        gone, corrected, change = self._change(day, 9, self.dashboard_rows_per_day)
        passed = day.day / 31
        for n in range(self.dashboard_rows_per_day + (2 if self._revised(day) else 0)):
            cuentas = int(rng.integers(20, 900))
            clientes = max(1, cuentas - int(rng.integers(0, 15)))
            cents = int(rng.integers(100_000, 90_000_000))
            cover, direct_share, indirect_share, promise_share, pay_share = rng.uniform(0.05, [1.0, 0.5, 0.4, 0.6, 0.35])
            intensity = int(rng.integers(4, 20))
            # Only after the row's last draw: leaving out a draw would change every later row of the day.
            if n in gone:
                continue
            worked = int(cuentas * cover * (1 - (1 - passed) ** 2))
            direct, indirect = int(worked * direct_share), int(worked * indirect_share)
            promises = int(direct * promise_share)
            paid = int(cents * pay_share * passed)
            if n in corrected:
                paid += int(change.integers(1, 5000))
            contacts = direct + indirect
            yield {
                "fecha_foto": day,
                "archivo": _archivo(day, n // 10),
                "cartera": CARTERAS[n // 2 % 5],
                "servicio": SERVICIOS[n % 2],
                "cuentas": cuentas,
                "clientes": clientes,
                "cuentas_gestionadas": worked,
                "cuentas_cd": direct,
                "cuentas_ci": indirect,
                "cuentas_sc": worked - contacts,
                "cuentas_sg": cuentas - worked,
                "cuentas_pdp": promises,
                "deuda_asig": Decimal(cents) / 100,
                "deuda_act": Decimal(cents - paid) / 100,
                "recupero": Decimal(paid) / 100,
                "pct_cober": 100 * worked / cuentas,
                "pct_contac": 100 * contacts / worked if worked else None,
                "pct_cd": 100 * direct / worked if worked else None,
                "pct_ci": 100 * indirect / worked if worked else None,
                "pct_conversion": 100 * promises / direct if direct else None,
                "pct_efectividad": 100 * direct / cuentas,
                "pct_cierre": 100 * promises / cuentas,
                "inten": intensity * (1 + day.day // 8) / 8,
                "fecha_procesamiento": self._stamp(day),
            }

    def _assignments(self, day: date) -> Iterator[dict[str, Any]]:
        rng = self._rng(day.replace(day=1), 2)
        fallen = Decimal(100 - day.day) / 100
        count = self._scaled(ACCOUNTS)
        gone, corrected, change = self._change(day, 11, count)
        for n in range(count):
            debt = Decimal(int(rng.integers(2_000, 400_000))) / 100
            if n in gone:
                continue
            owed = (debt * fallen).quantize(Decimal("0.01"))
            yield {
                "fecha_foto": day,
                "periodo_mes": f"{day:%Y-%m}",
                "archivo": _archivo(day, n // 10 % max(4, count // 100)),
                "tipo_cartera": CARTERAS[n % 5],
                "servicio": SERVICIOS[n // 5 % 2],
                "cuenta": f"{day:%Y%m}{n:06d}",
                "cliente": f"C{n * 7 // 8:06d}",
                "deuda_inicial": debt,
                "deuda_actual": owed - Decimal(int(change.integers(1, 500))) / 100 if n in corrected else owed,
                "fecha_vencimiento": day.replace(day=20 + n % 5),
                "fecha_procesamiento": self._stamp(day),
            }

    def _attempts(self, day: date) -> Iterator[dict[str, Any]]:
        rng = self._rng(day, 3)
        kind = {5: "saturday", 6: "sunday"}.get(day.weekday(), "weekday")
        count = self._scaled(ATTEMPTS[kind])
        gone, corrected, change = self._change(day, 10, count)
        for n, hour in enumerate(_hours(rng, kind, count)):
            row = self._attempt(day, n, hour, rng)
            if n in gone:
                continue
            if n in corrected:
                row["es_contacto_efectivo"] = not row["es_contacto_efectivo"]
                row["es_compromiso"] = False
            yield row
        if self._revised(day):
            for n, hour in enumerate(_hours(change, kind, 5)):
                yield self._attempt(day, n, hour, change)

    def _attempt(self, day: date, n: int, hour: int, rng: np.random.Generator) -> dict[str, Any]:
        human = bool(rng.random() < 0.6) and day.weekday() != 6
        contact = bool(rng.random() < (0.35 if human else 0.12))
        at = datetime(day.year, day.month, day.day, hour, int(rng.integers(60)), tzinfo=self.zone.tzinfo)
        return {
            "fecha_gestion": day,
            "timestamp_gestion": at.astimezone(UTC),
            "canal_origen": "HUMANO" if human else "BOT",
            "archivo": _archivo(day, n % 4),
            "correo_agente": _mail(int(rng.integers(AGENTS))) if human else None,
            "es_contacto_efectivo": contact,
            "es_compromiso": contact and bool(rng.random() < 0.3),
            "peso": float(rng.integers(0, 9)) / 4,
            "fecha_procesamiento": self._stamp(day),
        }


def base_of(names: Mapping[str, str], name: str) -> str:
    """The full name of the table that holds the rows of a source: the base table under its view, or the table of the agents."""
    return f"{names[name]}_base" if name in PARTITIONED else names[name]


def _drop_table(client: bigquery.Client, name: str) -> None:
    """Drops a table that stands where a view has to be."""
    with suppress(NotFound):
        if client.get_table(name).table_type == "TABLE":
            client.delete_table(name)


def load_table(client: bigquery.Client, name: str, table: pa.Table) -> None:
    """Replaces a BigQuery table's rows by the rows of the Arrow table."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    buffer.seek(0)
    config = bigquery.LoadJobConfig(source_format="PARQUET", write_disposition="WRITE_TRUNCATE")
    client.load_table_from_file(buffer, name, job_config=config).result()


def _hours(rng: np.random.Generator, kind: str, count: int) -> list[int]:
    return [int(hour) for hour in rng.choice(np.arange(7, 21), size=count, p=HOURS[kind] / HOURS[kind].sum())]


def _archivo(day: date, n: int) -> str:
    return f"Cartera_Agencia_Cobranzas_Peru_{day:%Y%m}01_{n:02d}.txt"


def _agent(n: int) -> dict[str, str]:
    return {"correo": _mail(n), "nombre": NOMBRES[n % 7], "dni": f"{40000000 + n * 7919}", "equipo": f"EQUIPO {n % 3}"}


def _mail(n: int) -> str:
    return f"agente{n:02d}@pulso.example"
