"""The rows that every way loads: made up, the same for the same size, in random key order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
from pgpq import ArrowToPostgresBinaryEncoder

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.spec import ColumnType
from pulso_etl.tables import TABLES

SPEC = TABLES["dashboard_data"]
DAYS = 100
WINDOW = DayRange(date(2026, 1, 1), date(2026, 1, 1) + timedelta(days=DAYS - 1))
CARTERAS = ("TEMPRANA", "ALTAS NUEVAS", "CUOTA FRACCIONADA", "GESTIÓN ESPECIAL", "REINCIDENTE NIÑEZ")
SERVICIOS = ("FIJA", "MOVIL")
CHANGED_DAYS = (40, 41)
"""The days of which every tenth row changes, by their number from 0."""
NOON = datetime(2026, 5, 1, 17, tzinfo=UTC)

SCHEMA = pa.schema(
    [
        pa.field(
            column.name,
            {
                ColumnType.DATE: pa.date32(),
                ColumnType.TEXT: pa.string(),
                ColumnType.INTEGER: pa.int64(),
                ColumnType.NUMERIC: pa.decimal128(38, 9),
                ColumnType.DOUBLE: pa.float64(),
                ColumnType.TIMESTAMP: pa.timestamp("us", "UTC"),
            }[column.type],
        )
        for column in SPEC.columns
    ]
)
"""The types as BigQuery gives them: NUMERIC is decimal128(38, 9)."""


@dataclass(frozen=True)
class Inputs:
    """One set of rows as two files: an Arrow IPC stream in batches of the table's size, and COPY's binary format."""

    arrow: Path
    binary: Path


class Edition(IntEnum):
    """A state of the source; each has the changes of the one before it. A change is another recovered amount and another stamp."""

    BASE = 0
    TWO_DAYS = 1
    """A tenth of the rows of two days have changed."""
    SPREAD = 2
    """One row in a hundred has changed, over all days alike."""


def write_inputs(folder: Path, rows: int, edition: Edition = Edition.BASE) -> Inputs:
    """Writes the files."""
    name = f"{rows}-{edition.name.lower()}"
    inputs = Inputs(folder / f"{name}.arrow", folder / f"{name}.copy")
    encoder = ArrowToPostgresBinaryEncoder(SCHEMA)
    with pa.OSFile(str(inputs.arrow), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as stream, inputs.binary.open("wb") as binary:
        binary.write(encoder.write_header())
        for batch in _batches(rows, edition):
            stream.write_batch(batch)
            binary.write(encoder.write_batch(batch))
        binary.write(encoder.finish())
    return inputs


def reader(arrow: Path) -> pa.RecordBatchReader:
    """The rows as a stream. It reads the file and does not map it, so the file's pages do not count as the process's memory."""
    return pa.ipc.open_stream(pa.OSFile(str(arrow)))


def _batches(rows: int, edition: Edition) -> Iterator[pa.RecordBatch]:
    rng = np.random.default_rng(7)
    order = rng.permutation(rows)
    carteras, servicios = pa.array(CARTERAS), pa.array(SERVICIOS)
    per_archivo = DAYS * len(CARTERAS) * len(SERVICIOS)
    archivos = pa.array([f"Cartera_Agencia_Cobranzas_Peru_{n:05d}.txt" for n in range(rows // per_archivo + 1)])
    stamp = np.datetime64(NOON.replace(tzinfo=None), "us")
    for start in range(0, rows, SPEC.source.batch_rows):
        key = order[start : start + SPEC.source.batch_rows]
        rest, day = np.divmod(key, DAYS)
        changes = (
            (edition >= Edition.TWO_DAYS) & np.isin(day, CHANGED_DAYS) & (rest % 10 == 0),
            (edition >= Edition.SPREAD) & ((rest + day) % 100 == 0),
        )
        bump = np.sum(changes, axis=0)
        rest, servicio = np.divmod(rest, len(SERVICIOS))
        archivo, cartera = np.divmod(rest, len(CARTERAS))
        given = {
            "fecha_foto": pa.array(np.datetime64(WINDOW.start) + day),
            "archivo": archivos.take(archivo),
            "cartera": carteras.take(cartera),
            "servicio": servicios.take(servicio),
        }
        for column in SPEC.columns:
            if column.type is ColumnType.INTEGER:
                given[column.name] = pa.array(rng.integers(0, 5_000, len(key)))
            elif column.type is ColumnType.DOUBLE:
                given[column.name] = pa.array(rng.random(len(key)) * 100)
            elif column.type is ColumnType.NUMERIC:
                cents = rng.integers(0, 100_000_000, len(key)) + (bump if column.name == "recupero" else 0)
                given[column.name] = _decimals(cents)
            elif column.type is ColumnType.TIMESTAMP:
                given[column.name] = pa.array(stamp + bump * np.timedelta64(1, "h")).cast(SCHEMA.field(column.name).type)
        yield pa.RecordBatch.from_arrays([given[name].cast(SCHEMA.field(name).type) for name in SCHEMA.names], schema=SCHEMA)


def _decimals(cents: np.ndarray) -> pa.Array:
    words = np.zeros((len(cents), 2), "<i8")  # 128 bits, low word first; the amounts are positive
    words[:, 0] = cents * 10**7
    return pa.Array.from_buffers(pa.decimal128(38, 9), len(cents), [None, pa.py_buffer(words)])
