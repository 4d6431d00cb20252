"""A source table with a change history. The emulator has none: it knows neither CHANGES nor APPENDS.

The test keeps a log of changes beside the table, in the emulator too. The proxy turns a call of such a function in a query's text
into a query of that log, with the columns that the function gives. BigQuery refuses some calls (the history is gone, or was never
kept). A test injects these refusals as errors of the service.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any

from google.cloud import bigquery

from pulso_etl.sync.spec import Column, ColumnType
from pulso_etl_tests.declarations import declare
from pulso_etl_tests.faulty_proxy import Fault, FaultyProxy, Request, edited

CALL = re.compile(rb"(CHANGES|APPENDS)\(TABLE `([^`]+)`, (@\w+), (@\w+)\)")
ONLY = {b"CHANGES": b"", b"APPENDS": b" AND change_type = 'INSERT'"}
Key = tuple[date, str]

CALLS = declare(
    name="calls",
    description="For tests.",
    primary_key=("day", "agent"),
    partition_column="day",
    columns=(
        Column(name="day", type=ColumnType.DATE),
        Column(name="agent", type=ColumnType.TEXT),
        Column(name="amount", type=ColumnType.INTEGER, maximum=1000),
    ),
    query="SELECT fecha AS day, UPPER(agente) AS agent, monto AS amount FROM `{calls}` WHERE fecha BETWEEN @start AND @end",
    lookback_days=3,
    change_capture="changes",
)


class ChangeHistoryProxy(FaultyProxy):
    """Passes requests on to the emulator. It replaces each call of a function of the change history by a query of the log."""

    def __enter__(self) -> ChangeHistoryProxy:
        super().__enter__()
        return self

    def fault_for(self, request: Request) -> Fault | None:
        """The next injected fault for the request, or the translation of a call."""
        return super().fault_for(request) or (_translated if CALL.search(request.body) else None)

    @property
    def captures(self) -> list[bytes]:
        """The calls that clients made, refused calls included."""
        return [found[0] for request in self.requests if (found := CALL.search(request.body))]

    def set_created(self, table: str, at: datetime) -> None:
        """Changes the time at which the emulator says that it created the table."""
        told = {"creationTime": str(int(at.timestamp() * 1000))}
        self.inject(rf"^GET \S+/tables/{table}\?", edited(lambda body: body | told), times=None)


def _translated(handler: Any, request: Request) -> None:
    def log(call: re.Match[bytes]) -> bytes:
        function, table, since, until = call.groups()
        return (
            b"(SELECT fecha, agente, monto, change_type AS _CHANGE_TYPE, change_at AS _CHANGE_TIMESTAMP "
            b"FROM `%b_log` WHERE change_at >= %b AND change_at < %b%b)" % (table, since, until, ONLY[function])
        )

    handler.send(handler.ask_upstream(replace(request, body=CALL.sub(log, request.body))))


@dataclass
class Source:
    """The table `calls` and its log. Rows are amounts by day and agent. Only the query turns agents into upper case.

    `write` brings committed changes to BigQuery.
    """

    client: bigquery.Client
    name: str
    rows: dict[Key, int] = field(default_factory=dict)
    log: list[tuple[datetime, str, Key, int]] = field(default_factory=list)

    def commit(self, at: datetime, put: Mapping[Key, int] | None = None, delete: Iterable[Key] = ()) -> None:
        """One transaction. It inserts rows, updates rows whose key exists, and deletes rows."""
        put, gone = put or {}, [key for key in delete if key in self.rows]
        old = [("DELETE", key, self.rows[key]) for key in (*gone, *(key for key in put if key in self.rows))]
        new = [("UPDATE" if key in self.rows else "INSERT", key, amount) for key, amount in put.items()]
        # The deletion of an updated row can be anywhere among the rows of its transaction.
        changes = (*new, *old) if len(self.log) % 2 else (*old, *new)
        self.log += [(at, kind, key, amount) for kind, key, amount in changes]
        self.rows = {key: amount for key, amount in self.rows.items() if key not in gone} | dict(put)

    def write(self) -> None:
        """Makes the table and its log in the emulator equal to this object."""
        self.client.create_dataset(self.name.rpartition(".")[0], exists_ok=True)
        rows = [_values(key, amount) for key, amount in self.rows.items()]
        self._replace(self.name, "", rows)
        self.write_log()

    def write_log(self) -> None:
        """Makes the log in the emulator equal to this object."""
        rows = [f"{_values(key, amount)}, '{kind}', TIMESTAMP '{at:%Y-%m-%d %H:%M:%S.%f}+00'" for at, kind, key, amount in self.log]
        self._replace(f"{self.name}_log", ", change_type STRING, change_at TIMESTAMP", rows)

    def _replace(self, table: str, more: str, rows: Sequence[str]) -> None:
        self.client.query_and_wait(f"CREATE OR REPLACE TABLE `{table}` (fecha DATE, agente STRING, monto INT64{more})")
        if rows:
            self.client.query_and_wait(f"INSERT INTO `{table}` VALUES {', '.join(f'({row})' for row in rows)}")

    def as_of(self, instant: datetime) -> dict[Key, int]:
        """The rows that existed just before the instant."""
        rows: dict[Key, int] = {}
        # Within one transaction, the deletions count first.
        for _, kind, key, amount in sorted((entry for entry in self.log if entry[0] < instant), key=_order):
            if kind == "DELETE":
                rows.pop(key, None)
            else:
                rows[key] = amount
        return rows


def _order(entry: tuple[datetime, str, Key, int]) -> tuple[datetime, bool]:
    return entry[0], entry[1] != "DELETE"


def _values(key: Key, amount: int) -> str:
    return f"DATE '{key[0]}', '{key[1]}', {amount}"


def loaded(rows: Mapping[Key, int], days: Sequence[date] = ()) -> list[tuple[date, str, int]]:
    """The rows as PostgreSQL holds them, in order; only those of the given days, if days are given."""
    return sorted((day, agent.upper(), amount) for (day, agent), amount in rows.items() if not days or day in days)
