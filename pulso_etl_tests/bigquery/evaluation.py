"""Runs statements over rows with GoogleSQL's reference evaluator: what BigQuery's language says their result is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from zetasql.wasi._pb2.zetasql.local_service import local_service_pb2 as service
from zetasql.wasi._pb2.zetasql.public import value_pb2

from pulso_etl.bigquery.analysis import FUNCTIONS, Catalogue, Columns, catalogue_message, options, refusal, type_name
from pulso_etl.bigquery.googlesql import EngineRefused, engine

EPOCH, DAY_ZERO = datetime(1970, 1, 1, tzinfo=UTC), date(1970, 1, 1)
SCALES = {"NUMERIC": 9, "BIGNUMERIC": 38}
FIELDS = {"BOOL": "bool_value", "FLOAT64": "double_value", "INT64": "int64_value", "STRING": "string_value"}
WIDE = Context(prec=80)
"""BIGNUMERIC has more digits than Python's own context keeps."""
Row = dict[str, Any]


def evaluate(
    statement: str,
    parameters: Mapping[str, tuple[str, Any]],
    tables: Mapping[str, Sequence[Row]],
    catalogue: Catalogue,
    functions: Columns = FUNCTIONS,
) -> list[Row]:
    """The rows of the statement's result, in any order. `parameters` are types and values. `tables` belongs to `catalogue`.

    `functions`: the queries that CHANGES and APPENDS stand for. Raises StatementRefused, also for a value that has no result.
    """
    request = service.EvaluateQueryRequest(
        sql=statement,
        options=options({name: kind for name, (kind, _) in parameters.items()}),
        simple_catalog=catalogue_message(catalogue, functions),
        params=[service.Parameter(name=name, value=message(*given)) for name, given in parameters.items()],
    )
    for name, rows in tables.items():
        data = request.table_content[name].table_data
        data.SetInParent()
        for row in rows:
            data.row.add(cell=[message(kind, row[column]) for column, kind in catalogue[name].items()])
    try:
        answer = engine().call("EvaluateQuery", request, service.EvaluateQueryResponse)
    except EngineRefused as error:
        raise refusal(error) from None
    columns = [(column.name, type_name(column.type)) for column in answer.prepared.columns]
    return [
        {name: value(kind, cell) for (name, kind), cell in zip(columns, row.cell, strict=True)}
        for row in answer.content.table_data.row
    ]


def message(kind: str, given: Any) -> Any:
    """ValueProto of a value."""
    if given is None:
        return value_pb2.ValueProto()
    if kind in FIELDS:
        return value_pb2.ValueProto(**{FIELDS[kind]: given})
    if kind in SCALES:
        units = int(Decimal(given).scaleb(SCALES[kind], WIDE).to_integral_exact(context=WIDE))
        raw = units.to_bytes((units if units >= 0 else ~units).bit_length() // 8 + 1, "little", signed=True)
        return value_pb2.ValueProto(**{f"{kind.lower()}_value": raw})
    if kind == "DATE":
        return value_pb2.ValueProto(date_value=(given - DAY_ZERO).days)
    assert kind == "TIMESTAMP", kind
    microseconds = (given - EPOCH) // timedelta(microseconds=1)
    stamp = Timestamp(seconds=microseconds // 10**6, nanos=microseconds % 10**6 * 1000)
    return value_pb2.ValueProto(timestamp_value=stamp)


def value(kind: str, given: Any) -> Any:
    """The value of a ValueProto."""
    field = given.WhichOneof("value")
    if field is None:
        return None
    raw = getattr(given, field)
    if kind in SCALES:
        return Decimal(int.from_bytes(raw, "little", signed=True)).scaleb(-SCALES[kind], WIDE)
    if kind == "DATE":
        return DAY_ZERO + timedelta(days=raw)
    if kind == "TIMESTAMP":
        return EPOCH + timedelta(seconds=raw.seconds, microseconds=raw.nanos // 1000)
    assert kind in FIELDS, kind
    return raw
