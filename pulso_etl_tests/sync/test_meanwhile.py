"""Another program writes to the days of a load while it goes on: the load fails as busy, and its next attempt is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from threading import Event
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from pulso_etl.sync.errors import DuplicateKeyError, RejectedRows, TableBusy, VerificationFailed
from pulso_etl.sync.loading.before import Before, Days
from pulso_etl.sync.loading.change_log import Entered
from pulso_etl.sync.loading.differences import Differences, write
from pulso_etl.sync.loading.plans import equalizing
from pulso_etl.sync.spec import DELETED, TableSpec
from pulso_etl_tests.sync.places import Place
from pulso_etl_tests.sync.samples import D1, WINDOW, by_month, row, table, things, wider
from pulso_etl_tests.sync.test_buckets import MANY, changed, money, without

INSERTED = "INSERT INTO things (day, name) VALUES ('2026-02-27', '{}')"
TAKEN = "DELETE FROM things WHERE day = '2026-02-27' AND name = '{}'"
FEW = [row(day, f"n{number}") for number in range(6) for day in WINDOW]
BUSY = "another program, or a trigger of the table, changed rows"
QUARANTINE: dict[str, Any] = {"on_reject": "quarantine", "maximum_quarantined_share": 0.5}
SPECS = {
    "upsert": things(),
    "upsert by month": by_month(),
    "history": things(strategy="scd2"),
    "history by month": by_month(strategy="scd2"),
    "quarantine": things(**QUARANTINE),
    "history, quarantine": things(strategy="scd2", **QUARANTINE),
    "replacement": things(strategy="replace_partition"),
}


def current(place: Place) -> list[tuple[Any, ...]]:
    """The rows that count: of a table that keeps history, the current versions."""
    return place.run("SELECT day, name, money FROM things t WHERE to_jsonb(t) ->> 'valid_to' IS NULL ORDER BY day, name")


@pytest.fixture
def other(place: Place, server_url: str) -> Callable[[str], None]:
    """Runs a statement of another program on the schema's tables, and commits it."""

    def run(statement: str) -> None:
        with psycopg.connect(server_url, autocommit=True) as conn:
            conn.execute(f"SET search_path = {place.schema}; SET lock_timeout = '5s'".encode())
            conn.execute(statement.encode())

    return run


@pytest.fixture(params=["counted", "compared"])
def meanwhile(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, other: Callable[[str], None]
) -> Callable[[str], None]:
    """Lets the other program run a statement during the next load: once the day's rows are counted, or before the load writes."""

    def after_the_count(statement: str) -> None:
        count = Before.days

        def days(before: Before) -> Days:
            found = count(before)
            monkeypatch.setattr(Before, "days", count)
            other(statement)
            return found

        monkeypatch.setattr(Before, "days", days)

    def before_the_write(statement: str) -> None:
        def meddled(differences: Differences) -> Entered:
            monkeypatch.setattr(equalizing, "write", write)
            other(statement)
            return write(differences)

        monkeypatch.setattr(equalizing, "write", meddled)

    return after_the_count if request.param == "counted" else before_the_write


@pytest.mark.parametrize("statement", [INSERTED.format("other"), INSERTED.format("new"), TAKEN.format("n3")])
@pytest.mark.parametrize("name", SPECS)
def test_a_load_that_meets_another_program_loads_or_is_busy(
    place: Place, meanwhile: Callable[[str], None], name: str, statement: str
) -> None:
    spec, given = SPECS[name], [*changed(without(FEW, "n2", days=(D1,)), "n5", days=(D1,)), row(D1, "new")]
    place.load(FEW, spec)
    meanwhile(statement)
    with suppress(TableBusy):
        place.load(given, spec, sole=False, allow_shrink=True)
    place.load(given, spec, sole=False, allow_shrink=True)
    assert current(place) == sorted((one["day"], one["name"], one["money"]) for one in given)


@pytest.mark.parametrize("statement", [INSERTED.format("other"), INSERTED.format("new"), TAKEN.format("n3")])
@pytest.mark.parametrize("strategy", ["upsert", "scd2"])
def test_a_load_of_changes_that_meets_another_program_loads_or_is_busy(
    place: Place, meanwhile: Callable[[str], None], strategy: str, statement: str
) -> None:
    spec = things(strategy=strategy)
    place.load(FEW, spec)
    given = wider([row(D1, "n5", "9"), row(D1, "new", "1")], **{DELETED.name: [False, False]})
    meanwhile(statement)
    with suppress(TableBusy):
        place.load(given, spec, captured=True, sole=False)
    place.load(given, spec, captured=True, sole=False)
    assert {(D1, "n5", 9), (D1, "new", 1)} <= set(current(place))


@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_a_key_that_another_program_inserts_just_before_the_load_does(
    place: Place, other: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, spec: TableSpec
) -> None:
    def meddled(differences: Differences) -> Entered:
        other(INSERTED.format("new"))
        return write(differences)

    place.load(FEW, spec)
    monkeypatch.setattr(equalizing, "write", meddled)
    with pytest.raises(TableBusy, match=BUSY):
        place.load([*FEW, row(D1, "new")], spec, sole=False)


def test_a_unique_index_of_a_person_is_no_other_program(place: Place) -> None:
    place.load(FEW, things())
    place.run("CREATE UNIQUE INDEX only_one ON things (name) WHERE name = 'new'")
    with pytest.raises(RejectedRows, match="only_one"):
        place.load([*FEW, row(D1, "new"), row(WINDOW.end, "new")], things(), sole=False)


@pytest.mark.parametrize(
    ("key", "repeatable", "error"), [("n1", False, TableBusy), ("n1", True, None), ("twice", False, DuplicateKeyError)]
)
def test_a_key_that_another_program_inserts_into_an_empty_day(
    place: Place, other: Callable[[str], None], key: str, repeatable: bool, error: type[Exception] | None
) -> None:
    """Rows of an empty day go straight into the table. What the source gives twice is still the source's fault."""
    place.load([], things())
    given = [*FEW, *[row(D1, "twice")] * (1 + (key == "twice"))]
    batches, once = table(given).to_batches(max_chunksize=3), [key]

    def stream() -> Iterator[pa.RecordBatch]:
        yield batches[0]
        if once and once.pop() != "twice":
            other(INSERTED.format(key))
        yield from batches[1:]

    def source() -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(batches[0].schema, stream())

    with pytest.raises(error) if error else nullcontext():
        place.load(source, things(), sole=False, repeatable=repeatable)
    if not error:
        assert len(current(place)) == len(given)


@pytest.mark.parametrize(
    ("name", "gone", "meddle"),
    [
        ("upsert", "", INSERTED.format("x")),
        ("upsert", "n3", INSERTED.format("new")),
        ("upsert", "n3", TAKEN.format("n9")),
        ("history", "n3", TAKEN.format("n9")),
    ],
)
def test_rows_that_another_program_adds_or_takes_away_during_a_load(
    place: Place, plain: Place, other: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, name: str, gone: str, meddle: str
) -> None:
    """The load has counted the day's rows before, and does not look at all of them again. Its next attempt does."""
    given = [*changed(without(MANY, gone), "n7"), row(D1, "new")]
    batches, counted, count = table(given).to_batches(max_chunksize=100), Event(), Before.days

    def days(before: Before) -> Days:
        found = count(before)
        counted.set()
        return found

    def meddled() -> Iterator[pa.RecordBatch]:
        yield from batches[:-1]
        assert counted.wait(10)
        other(meddle)
        yield batches[-1]

    spec = SPECS[name]
    for one in (place, plain):
        one.load(MANY, spec)
    monkeypatch.setattr(Before, "days", days)
    with pytest.raises(TableBusy, match=BUSY) as caught:
        place.load(lambda: pa.RecordBatchReader.from_batches(batches[0].schema, meddled()), spec, sole=False)
    assert caught.value.retryable
    for one in (place, plain):
        one.load(given, spec, sole=False)
    assert current(place) == current(plain)
    assert 800 > place.sent > 400


def test_a_row_that_another_program_adds_between_the_comparison_and_the_end(
    place: Place, other: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the whole day was compared."""

    def meddled(differences: Differences) -> Entered:
        other(INSERTED.format("x"))
        return write(differences)

    place.skips = False
    place.load(MANY, things())
    monkeypatch.setattr(equalizing, "write", meddled)
    with pytest.raises(TableBusy, match=BUSY):
        place.load(changed(MANY, "n7"), things(), sole=False)
    monkeypatch.undo()
    place.load(changed(MANY, "n7"), things(), sole=False)
    assert money(place) == [(day, "n7") for day in WINDOW]
    assert place.run("SELECT count(*) FROM things") == [(1200,)]


@pytest.mark.parametrize(("sole", "error"), [(True, VerificationFailed), (False, TableBusy)])
def test_a_trigger_that_adds_rows_is_named(place: Place, sole: bool, error: type[Exception]) -> None:
    """Beside other writers, nobody knows who has added the rows."""
    place.load(MANY, things())
    place.run(
        "CREATE FUNCTION doubled() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO things (day, name) VALUES (NEW.day, NEW.name || '2'); RETURN NULL; END $$;"
        "CREATE TRIGGER doubles AFTER INSERT ON things FOR EACH ROW WHEN (NEW.name = 'new') EXECUTE FUNCTION doubled()"
    )
    with pytest.raises(error, match="triggers"):
        place.load([*MANY, row(D1, "new")], things(), sole=sole)


@pytest.mark.parametrize("sole", [True, False])
def test_a_row_that_does_not_arrive_is_no_change_of_another_program(place: Place, sole: bool) -> None:
    place.load(MANY, things())
    place.run(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
        "CREATE TRIGGER swallows BEFORE INSERT ON things FOR EACH ROW WHEN (NEW.name = 'lost') EXECUTE FUNCTION swallow()"
    )
    with pytest.raises(VerificationFailed, match=r"2026-02-27: 401 rows read, 400 in PostgreSQL.*triggers"):
        place.load([*MANY, row(D1, "lost")], things(), sole=sole)
