"""Declarations that no table can be made of are refused when they are declared."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from pulso_etl.sync.spec import MOST_COLUMNS, MOST_KEY_COLUMNS, Adds, Column, ColumnType, Figure, Quality, Schedule, TableSpec, Unit
from pulso_etl.tables import TABLES
from pulso_etl_tests.declarations import altered
from pulso_etl_tests.sync.samples import monthly, things

LIMITS = ("minimum", "maximum", "expected_minimum", "expected_maximum")
NUMBERS = {ColumnType.INTEGER, ColumnType.NUMERIC, ColumnType.DOUBLE}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("kind", ColumnType)
def test_only_numbers_take_limits(kind: ColumnType, limit: str) -> None:
    fields: dict[str, Any] = {"name": "x", "type": kind, limit: 0}
    if kind in NUMBERS:
        assert getattr(Column(**fields), limit) == 0
    else:
        with pytest.raises(ValidationError, match=f"column x: {limit} on a column of {kind}; only bigint, numeric, double"):
            Column(**fields)


@pytest.mark.parametrize(
    ("kind", "greatest"), [(ColumnType.INTEGER, 2**63 - 1), (ColumnType.NUMERIC, 10**38 - 1), (ColumnType.DOUBLE, 2**53)]
)
def test_a_limit_that_the_type_can_not_hold_is_refused(kind: ColumnType, greatest: int) -> None:
    for limit in LIMITS:
        for sign in (1, -1):
            assert Column(name="x", type=kind, **{limit: sign * greatest})
            with pytest.raises(ValidationError, match=f"column x: {limit} beyond ±{greatest}, which {kind} can't hold"):
                Column(name="x", type=kind, **{limit: sign * (greatest + 1)})


@pytest.mark.parametrize("prefix", ["", "expected_"])
def test_limits_between_which_no_value_lies_are_refused(prefix: str) -> None:
    with pytest.raises(ValidationError, match=f"column x: {prefix}minimum 2 is above {prefix}maximum 1: no value fits"):
        Column(name="x", type=ColumnType.INTEGER, **{f"{prefix}minimum": 2, f"{prefix}maximum": 1})


def test_names_of_ours_and_of_the_server_are_refused() -> None:
    with pytest.raises(ValidationError, match="pulso_stage: names that begin with pulso_ are ours"):
        things(name="pulso_stage")
    for name in ("etl_watermarks", "etl_extractions", "etl_quarantine", "etl_alerts", "etl_refreshes", "etl_of_mine"):
        with pytest.raises(ValidationError, match=f"{name}: names that begin with etl_ are ours"):
            things(name=name)
    for name in ("pulso_deleted", "pulso_sid", "pulso_anything", "ctid", "created_at"):
        with pytest.raises(ValidationError, match=f"things: \\['{name}'\\] are kept by the destination"):
            things(Column(name=name, type=ColumnType.TEXT))


def test_more_columns_than_a_table_can_have_are_refused() -> None:
    columns = [Column(name=f"c{number}", type=ColumnType.BOOLEAN) for number in range(1700)]
    fit = MOST_COLUMNS - len(things().columns)
    assert len(things(*columns[:fit]).columns) == MOST_COLUMNS
    with pytest.raises(ValidationError, match=f"things: {MOST_COLUMNS + 1} columns; a table can have {MOST_COLUMNS} at most"):
        things(*columns[: fit + 1])
    with pytest.raises(ValidationError, match="1706 columns"):
        things(*columns)


def test_a_key_that_no_index_takes_is_refused() -> None:
    columns = tuple(Column(name=f"c{number}", type=ColumnType.TEXT) for number in range(40))
    key = ("day", *(column.name for column in columns))
    assert things(*columns, primary_key=key[:MOST_KEY_COLUMNS])
    with pytest.raises(ValidationError, match="32 columns in the primary key; a key can have 31 at most"):
        things(*columns, primary_key=key[: MOST_KEY_COLUMNS + 1])
    with pytest.raises(ValidationError, match="a column stands in the primary key twice"):
        things(primary_key=("day", "name", "day"))


def test_declarations_outlive_the_way_through_an_asset_s_metadata() -> None:
    for spec in TABLES.values():
        assert TableSpec.from_metadata(spec.as_metadata()) == altered(spec, query="")


@pytest.mark.parametrize(
    ("kind", "field", "told"),
    [
        (TableSpec, "lookback_days", "things: lookback_days is a field of schedule: schedule=Schedule(lookback_days=…)"),
        (TableSpec, "lookback_day", "did you mean lookback_days? (lookback_days is a field of schedule: schedule=Schedule("),
        (TableSpec, "load", "things: TableSpec has no field load; did you mean loading?"),
        (Schedule, "lookback_day", "Schedule has no field lookback_day; did you mean lookback_days?"),
        (Schedule, "minimum_records", "minimum_records is a field of quality: quality=Quality(minimum_records=…)"),
        (Quality, "primary_key", "primary_key is a field of the table: TableSpec(primary_key=…)"),
        (Quality, "xyz", "Quality has no field xyz; its fields are minimum_records, volume_factor, "),
        (Column, "requird", "x: Column has no field requird; did you mean required?"),
    ],
)
def test_a_field_that_is_misspelled_or_stands_elsewhere_is_refused(kind: type[BaseModel], field: str, told: str) -> None:
    given = {TableSpec: things().model_dump(), Column: {"name": "x", "type": ColumnType.TEXT}}.get(kind, {})
    with pytest.raises(ValidationError, match=re.escape(told)):
        kind(**given | {field: 1})


def figure(**fields: Any) -> Figure:
    return Figure(**{"name": "f", "title": "F", "unit": Unit.COUNT, "of": ("money",)} | fields)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"of": ()}, "figure f: sum is made of 1 columns, and `of` names 0"),
        ({"adds": Adds.COUNT}, "figure f: count is made of 0 columns, and `of` names 1"),
        ({"adds": Adds.RATIO}, "figure f: ratio is made of 2 columns, and `of` names 1"),
        ({"unit": Unit.PERCENT}, "figure f: only a ratio is in percent"),
    ],
)
def test_a_figure_has_the_columns_that_it_is_made_of(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        figure(**fields)


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ((figure(), figure()), "things: two figures have one name"),
        ((figure(of=("monye",)),), "things: ['monye'] are named by figures but not declared as columns"),
        ((figure(of=("rate",)),), "things: figures add up ['rate']; only bigint and numeric add up exactly"),
    ],
)
def test_figures_follow_exactly_from_declared_columns(figures: tuple[Figure, ...], told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        things(figures=figures)
    assert things(figures=(figure(), figure(name="names", adds=Adds.DISTINCT, of=("rate",)))).figures


def test_figures_need_days_that_keep_their_rows() -> None:
    with pytest.raises(ValidationError, match="things: figures need the partition column day in the primary key"):
        monthly(figures=(figure(),))
