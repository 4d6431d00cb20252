"""Stamps that the load gives to rows, because their query has no clock."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.streams import as_stream
from pulso_etl.tables import TABLES
from pulso_etl_tests.sync.samples import D1, NOON, WINDOW, Loads, row, table, things

SPEC = things(reading_stamps=("stamp",))
CLOCKS = ("CURRENT_", "NOW(", "RAND(", "UUID(", "SESSION_USER")


def bare(*rows: dict[str, Any]) -> pa.Table:
    """Rows as a query without a clock returns them."""
    return table(rows).drop_columns(["stamp"])


@dataclass
class Dated:
    """A deferred stream whose source computed the rows at `computed_at`."""

    rows: pa.Table
    computed_at: datetime | None = NOON
    metadata: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def open(self) -> Iterator[pa.RecordBatchReader]:
        yield self.rows.to_reader()

    def look(self, kept: Collection[str] = ()) -> None:
        return None

    def read_past(self, days: DayRange) -> Any:
        return self.open()


def stamps(obj: Any, spec: TableSpec = SPEC) -> list[Any]:
    with as_stream(spec, WINDOW, obj).open() as reader:
        return reader.read_all().column("stamp").to_pylist()


def test_rows_get_the_instant_at_which_the_source_computed_them() -> None:
    rows = bare(row(D1, "a"), row(D1, "b"))
    assert stamps(Dated(rows)) == [NOON, NOON]
    read_past = as_stream(SPEC, WINDOW, Dated(rows)).read_past
    assert read_past is not None
    with read_past(WINDOW) as reader:
        assert reader.read_all().column("stamp").to_pylist() == [NOON, NOON]


@pytest.mark.parametrize(
    "kind", [Dated, lambda rows, _: rows, lambda rows, _: rows.to_reader()], ids=["undated", "table", "reader"]
)
def test_where_the_source_does_not_say_when_it_is_the_time_of_the_load(kind: Any) -> None:
    before = datetime.now(UTC)
    (found,) = stamps(kind(bare(row(D1, "a")), None))
    assert before <= found <= datetime.now(UTC)


def test_a_stamp_that_the_source_gives_stays_and_a_source_without_rows_has_all_columns() -> None:
    own = NOON - timedelta(days=1)
    assert stamps(Dated(table([row(D1, "a", stamp=own)]))) == [own]
    assert stamps(Dated(bare())) == []


def test_a_later_reading_of_the_same_rows_writes_none(loads: Loads) -> None:
    def load(at: datetime) -> int:
        with as_stream(SPEC, WINDOW, Dated(bare(row(D1, "a"), row(D1, "b", "2")), at)).open() as reader:
            return loads(reader.read_all(), SPEC).total.written

    assert (load(NOON), load(NOON + timedelta(hours=6))) == (2, 0)


@pytest.mark.parametrize("name", TABLES)
def test_no_statement_has_a_clock_and_the_load_adds_the_stamp_that_is_missing(name: str) -> None:
    spec = TABLES[name]
    assert not [clock for clock in CLOCKS if clock in spec.source.query.upper()]
    missing = [stamp for stamp in spec.stamp_columns if stamp not in spec.source.query]
    assert list(spec.reading_stamps) == missing
    assert [column.name for column in spec.query_columns] == [n for n in spec.column_names if n not in missing]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"reading_stamps": ("money",)}, r"reading_stamps \['money'\] are no stamp_columns"),
        (
            {"stamp_columns": ("money",), "reading_stamps": ("money",)},
            r"reading_stamps \['money'\] hold no timestamp with time zone",
        ),
        ({"reading_stamps": ("stamp",), "version_column": "stamp"}, "a version_column comes from the source"),
    ],
)
def test_only_a_stamp_of_an_instant_can_be_given_by_the_load(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        things(**fields)
