"""A running load: its request, and the table as the load found it under the lock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import psycopg

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.loading.before import Before
from pulso_etl.sync.loading.day_digests import can_be_skipped
from pulso_etl.sync.loading.request import LoadRequest, Source
from pulso_etl.sync.loading.result import Clock, Held
from pulso_etl.sync.loading.sieve import Known
from pulso_etl.sync.loading.spool import Spool
from pulso_etl.sync.postgres.catalog import Table
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.target import Target


@dataclass(frozen=True)
class Load:
    """What every plan knows about a load.

    `table`: the table as PostgreSQL has it. `before`: what it holds of the days. `is_empty`: it holds no row that rows of the
    window can clash with. `since`: the oldest transaction that went on when the load began. `aside`: the source's rows that wait
    until the load knows whether the server needs them.
    """

    target: Target
    request: LoadRequest
    table: Table
    before: Before
    is_empty: bool
    clock: Clock
    since: str
    aside: Spool

    @property
    def conn(self) -> psycopg.Connection:
        return self.target.conn

    @property
    def spec(self) -> TableSpec:
        return self.target.spec

    @property
    def window(self) -> DayRange:
        return self.request.window

    @property
    def held(self) -> Held:
        """What the table held of the days of the window before the load."""
        return Held(self.before.days().held, self.since)

    @property
    def source(self) -> Source:
        return self.request.source

    @property
    def bounds(self) -> dict[str, date]:
        return self.request.bounds

    @property
    def known(self) -> Known | None:
        """What digests need; None if the load has to compare every day with the table."""
        if not can_be_skipped(self.spec) or self.source.captured:
            return None
        return Known(self.table, self.window, self.request.last, self.before, self.aside)

    def __str__(self) -> str:
        """How errors name the load: by table and days."""
        return f"{self.spec.name} {self.window}"
