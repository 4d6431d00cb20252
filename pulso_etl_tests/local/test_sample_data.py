"""The generator of the sample data; no server needed."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, timedelta
from typing import Any

import pytest

from pulso_etl.local.sample_data import PARTITIONED, SCHEMAS, SampleData
from pulso_etl.refresh import LIMA

TODAY = date(2026, 7, 15)
NAMES = {name: f"p.d.{name}" for name in SCHEMAS}
KEYS = {
    "dashboard_cobranzas": ("fecha_foto", "archivo", "cartera", "servicio"),
    "asignaciones_clean": ("fecha_foto", "cuenta"),
}


def rows(name: str, today: date = TODAY, revision: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = SampleData(NAMES, today, revision=revision).tables()[name].to_pylist()
    return found


def values(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(value for name, value in row.items() if name != "fecha_procesamiento")


@pytest.mark.parametrize("name", PARTITIONED)
def test_days_are_stable_when_today_moves(name: str) -> None:
    column = PARTITIONED[name]
    first = TODAY - timedelta(days=28)  # the day that the later window starts with
    now = [row for row in rows(name) if row[column] >= first]
    later = [row for row in rows(name, TODAY + timedelta(days=1)) if row[column] <= TODAY]
    assert now
    assert now == later


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("revision", [0, 1])
def test_keys_are_unique(name: str, revision: int) -> None:
    counted = Counter(tuple(row[column] for column in KEYS[name]) for row in rows(name, revision=revision))
    assert max(counted.values()) == 1


def test_sizes() -> None:
    sizes = {name: table.num_rows for name, table in SampleData(NAMES, TODAY).tables().items()}
    assert sizes["dashboard_cobranzas"] == 5100
    assert sizes["asignaciones_clean"] <= 20_000
    assert sizes["gestiones_unificadas"] <= 25_000


@pytest.mark.parametrize("revision", [1, 2, 3])
def test_a_revision_changes_little_and_only_the_last_two_days(revision: int) -> None:
    key = KEYS["dashboard_cobranzas"]
    before = {tuple(row[c] for c in key): values(row) for row in rows("dashboard_cobranzas")}
    after = {tuple(row[c] for c in key): values(row) for row in rows("dashboard_cobranzas", revision=revision)}
    changed = {k for k in before.keys() & after.keys() if before[k] != after[k]}
    assert len(changed) == 16  # 5% of 170, on each of two days
    assert len(before.keys() - after.keys()) == 4
    assert len(after.keys() - before.keys()) == 4
    assert {k[0] for k in changed | (before.keys() ^ after.keys())} == {TODAY, TODAY - timedelta(days=1)}

    old, new = (Counter(map(values, rows("gestiones_unificadas", revision=r))) for r in (0, revision))
    assert 0 < (old - new).total() <= 90
    assert 0 < (new - old).total() <= 90
    assert min(row[0] for row in (old - new) + (new - old)) == TODAY - timedelta(days=1)


def test_stamps_move_with_the_revision_and_are_repeatable() -> None:
    name = "dashboard_cobranzas"
    assert rows(name, revision=1) == rows(name, revision=1)
    assert rows(name)[0]["fecha_procesamiento"] < rows(name, revision=1)[0]["fecha_procesamiento"]


def test_attempts_belong_to_their_lima_day() -> None:
    attempts = rows("gestiones_unificadas")
    assert all(row["timestamp_gestion"].astimezone(LIMA).date() == row["fecha_gestion"] for row in attempts)
    assert any(row["timestamp_gestion"].astimezone(UTC).date() != row["fecha_gestion"] for row in attempts)
    assert {row["correo_agente"] is None for row in attempts if row["canal_origen"] == "BOT"} == {True}
    known = {row["correo"] for row in rows("agentes")}
    assert {row["correo_agente"] for row in attempts} - known - {None}


def test_debt_falls_within_the_month() -> None:
    debts = [r for r in rows("asignaciones_clean") if r["periodo_mes"] == "2026-07" and r["cuenta"] == "202607000000"]
    amounts = [row["deuda_actual"] for row in sorted(debts, key=lambda row: row["fecha_foto"])]
    assert len(amounts) == 15
    assert amounts == sorted(amounts, reverse=True)
    assert amounts[0] > amounts[-1]
