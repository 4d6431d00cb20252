"""Analyses BigQuery statements offline, with GoogleSQL (see `bigquery.googlesql`): their columns and types, or their fault.

Nothing is sent anywhere, and nothing is read but the declared columns of the source tables. GoogleSQL accepts more than BigQuery
does, which leaves out some of its features. So a statement that is refused here is wrong. One that is accepted here may still be
refused by BigQuery.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pulso_etl.bigquery.googlesql import Engine, EngineRefused, engine
from pulso_etl.sync.errors import SourceError

Columns = Mapping[str, str]
"""Names and types, as BigQuery writes types: INT64, FLOAT64, ARRAY<STRING>."""
Catalogue = Mapping[str, Columns]
"""The columns of each table, by the name that stands in back-ticks in a statement."""
FrozenColumns = tuple[tuple[str, str], ...]
FrozenCatalogue = tuple[tuple[str, FrozenColumns], ...]

KINDS = {"BOOL": "BOOL", "BYTES": "BYTES", "FLOAT64": "DOUBLE", "INT64": "INT64", "STRING": "STRING"} | {
    kind: kind for kind in ("BIGNUMERIC", "DATE", "DATETIME", "GEOGRAPHY", "INTERVAL", "JSON", "NUMERIC", "TIME", "TIMESTAMP")
}
"""GoogleSQL's names of BigQuery's types."""
NAMES = {kind: name for name, kind in KINDS.items()}
FINER = ("FEATURE_TIMESTAMP_NANOS", "FEATURE_TIMESTAMP_PICOS")
"""BigQuery's instants have microseconds."""
HISTORY = {"_CHANGE_TYPE": "STRING", "_CHANGE_TIMESTAMP": "TIMESTAMP"}
"""The columns that CHANGES and APPENDS add to those of their table."""
FUNCTIONS = {
    name: "SELECT *, CAST(NULL AS STRING) AS _CHANGE_TYPE, CAST(NULL AS TIMESTAMP) AS _CHANGE_TIMESTAMP FROM source"
    for name in ("CHANGES", "APPENDS")
}
"""BigQuery's functions of a table `source` and two instants, `since` and `until`, each by a query with the same columns."""
PLACE = re.compile(r"\s*\[at (\d+):(\d+)\]\s*$")


class StatementRefused(SourceError):
    """A statement is wrong. `line` and `column` count from 1; they are None if the fault has no place of its own."""

    def __init__(self, fault: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(fault if line is None else f"{line}:{column}: {fault}")
        self.fault, self.line, self.column = fault, line, column


def analyse(statement: str, parameters: Columns, catalogue: Catalogue) -> dict[str, str]:
    """The columns of the statement's result, in order, by their types.

    `parameters` are the types of its named parameters. Raises StatementRefused; EngineMissing if the optional packages are not
    installed; EngineFailed.
    """
    return dict(_analysed(statement, tuple(parameters.items()), _frozen(catalogue)))


@lru_cache(maxsize=256)
def _analysed(statement: str, parameters: FrozenColumns, catalogue: FrozenCatalogue) -> FrozenColumns:
    asked = {"options": options(dict(parameters)), "registered_catalog_id": _registered(engine(), catalogue)}
    try:
        found = _resolved(statement, asked)
    except EngineRefused as error:
        raise refusal(error) from None
    if twice := [name for name, times in Counter(name.lower() for name, _ in found).items() if times > 1]:
        raise StatementRefused(f"The result has several columns of the name {', '.join(twice)}")
    return found


def _resolved(statement: str, asked: Mapping[str, Any]) -> FrozenColumns:
    from google.protobuf.message import DecodeError
    from zetasql.wasi._pb2.zetasql.local_service import local_service_pb2 as service

    try:
        answer = engine().call("Analyze", service.AnalyzeRequest(sql_statement=statement, **asked), service.AnalyzeResponse)
    except DecodeError:
        # Protocol Buffers read no more than a hundred levels. The evaluator tells the columns alone.
        return _prepared(statement, asked)
    given = answer.resolved_statement.resolved_query_stmt_node.output_column_list
    return tuple((column.name, type_name(column.column.type)) for column in given)


def _prepared(statement: str, asked: Mapping[str, Any]) -> FrozenColumns:
    from google.protobuf.empty_pb2 import Empty
    from zetasql.wasi._pb2.zetasql.local_service import local_service_pb2 as service

    prepared = (
        engine().call("PrepareQuery", service.PrepareQueryRequest(sql=statement, **asked), service.PrepareQueryResponse).prepared
    )
    engine().call("UnprepareQuery", service.UnprepareQueryRequest(prepared_query_id=prepared.prepared_query_id), Empty)
    return tuple((column.name, type_name(column.type)) for column in prepared.columns)


def refusal(error: EngineRefused) -> StatementRefused:
    """The engine's error with its place apart."""
    text = str(error)
    place = PLACE.search(text)
    fault = " ".join(PLACE.sub("", text).split())
    return StatementRefused(fault, int(place[1]), int(place[2])) if place else StatementRefused(fault)


def options(parameters: Columns) -> Any:
    """AnalyzerOptionsProto: the language as BigQuery sets it, and the parameters."""
    from zetasql.wasi._pb2.zetasql.proto import options_pb2 as proto
    from zetasql.wasi._pb2.zetasql.public import options_pb2 as public

    found = proto.AnalyzerOptionsProto(
        language_options=language(engine()), default_timezone="UTC", error_message_mode=public.ERROR_MESSAGE_ONE_LINE
    )
    found.enabled_rewrites.extend([public.REWRITE_INLINE_SQL_TVFS])
    for name, type_ in parameters.items():
        found.query_parameters.add(name=name, type=type_message(type_))
    return found


@lru_cache(maxsize=1)
def language(engine: Engine) -> Any:
    """LanguageOptionsProto: every feature that is finished, and the names of types that BigQuery uses."""
    from zetasql.wasi._pb2.zetasql.local_service import local_service_pb2 as service
    from zetasql.wasi._pb2.zetasql.proto import options_pb2 as proto
    from zetasql.wasi._pb2.zetasql.public import options_pb2 as public

    asked = service.LanguageOptionsRequest(maximum_features=True)
    found = engine.call("GetLanguageOptions", asked, proto.LanguageOptionsProto)
    found.product_mode = public.PRODUCT_EXTERNAL
    for name in FINER:
        found.enabled_language_features.remove(public.LanguageFeature.Value(name))
    return found


def catalogue_message(catalogue: Catalogue, functions: Columns = FUNCTIONS) -> Any:
    """SimpleCatalogProto: the tables, GoogleSQL's functions, and the functions of a table's history by their queries."""
    from zetasql.wasi._pb2.zetasql.proto import simple_catalog_pb2 as proto
    from zetasql.wasi._pb2.zetasql.public import function_pb2 as public

    found = proto.SimpleCatalogProto(name="bigquery")
    found.builtin_function_options.language_options.CopyFrom(language(engine()))
    for name, columns in catalogue.items():
        table = found.table.add(name=name)
        for column, type_ in columns.items():
            table.column.add(name=column, type=type_message(type_))
    for name, query in functions.items():
        function = found.custom_tvf.add(
            name_path=[name], type=public.FunctionEnums.TEMPLATED_SQL_TVF, argument_name=["source", "since", "until"]
        )
        function.parse_resume_location.input = query
        function.parse_resume_location.byte_position = 0
        signature = function.signature
        signature.argument.add(kind=public.ARG_TYPE_RELATION, num_occurrences=-1)
        for _ in ("since", "until"):
            signature.argument.add(kind=public.ARG_TYPE_FIXED, type=type_message("TIMESTAMP"), num_occurrences=-1)
        signature.return_type.kind = public.ARG_TYPE_RELATION
        signature.return_type.num_occurrences = -1
    return found


def type_message(name: str) -> Any:
    """TypeProto of a type. Raises StatementRefused for one that GoogleSQL or this module does not know."""
    from zetasql.wasi._pb2.zetasql.public import type_pb2 as proto

    if name.startswith("ARRAY<") and name.endswith(">"):
        element = type_message(name.removeprefix("ARRAY<").removesuffix(">"))
        return proto.TypeProto(type_kind=proto.TYPE_ARRAY, array_type=proto.ArrayTypeProto(element_type=element))
    if name not in KINDS:
        raise StatementRefused(f"{name} is no type of a column; known are {', '.join(sorted(KINDS))} and ARRAY<…> of them")
    return proto.TypeProto(type_kind=proto.TypeKind.Value(f"TYPE_{KINDS[name]}"))


def type_name(given: Any) -> str:
    """BigQuery's name of a TypeProto."""
    from zetasql.wasi._pb2.zetasql.public import type_pb2 as proto

    if given.type_kind == proto.TYPE_ARRAY:
        return f"ARRAY<{type_name(given.array_type.element_type)}>"
    kind: str = proto.TypeKind.Name(given.type_kind).removeprefix("TYPE_")
    return NAMES.get(kind, kind)


def _frozen(catalogue: Catalogue) -> FrozenCatalogue:
    return tuple((name, tuple(columns.items())) for name, columns in catalogue.items())


@lru_cache(maxsize=16)
def _registered(engine: Engine, catalogue: FrozenCatalogue) -> int:
    """The engine's number of the catalogue."""
    from zetasql.wasi._pb2.zetasql.local_service import local_service_pb2 as service

    asked = service.RegisterCatalogRequest(simple_catalog=catalogue_message({name: dict(columns) for name, columns in catalogue}))
    return engine.call("RegisterCatalog", asked, service.RegisterResponse).registered_id  # type: ignore[no-any-return]
