"""The generator of the sample data; no server needed."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, timedelta
from functools import cache
from typing import Any

import pyarrow as pa
import pytest

from pulso_etl.local.sample_data import PARTITIONED, SCHEMAS, SampleData
from pulso_etl_tests.lima import LIMA

TODAY = date(2026, 7, 15)
NAMES = {name: f"p.d.{name}" for name in SCHEMAS}
KEYS = {
    "dashboard_cobranzas": ("fecha_foto", "archivo", "cartera", "servicio"),
    "asignaciones_clean": ("fecha_foto", "cuenta"),
}


@cache
def tables(today: date, revision: int) -> dict[str, pa.Table]:
    return SampleData(NAMES, today, revision=revision).tables()


@cache
def rows(name: str, today: date = TODAY, revision: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tables(today, revision)[name].to_pylist()
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
    sizes = {name: table.num_rows for name, table in tables(TODAY, 0).items()}
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
    again = SampleData(NAMES, TODAY, revision=1)
    assert rows(name, revision=1) == again.tables()[name].to_pylist()
    assert rows(name)[0]["fecha_procesamiento"] < rows(name, revision=1)[0]["fecha_procesamiento"]


def test_attempts_belong_to_their_lima_day() -> None:
    attempts = rows("gestiones_unificadas")
    assert all(row["timestamp_gestion"].astimezone(LIMA).date() == row["fecha_gestion"] for row in attempts)
    assert any(row["timestamp_gestion"].astimezone(UTC).date() != row["fecha_gestion"] for row in attempts)
    assert {row["correo_agente"] is None for row in attempts if row["canal_origen"] == "BOT"} == {True}
    known = {row["correo"] for row in rows("agentes")}
    assert {row["correo_agente"] for row in attempts} - known - {None}


def test_the_size_setting_sets_every_table() -> None:
    small, large = (
        {name: table.num_rows for name, table in SampleData(NAMES, TODAY, 7, dashboard_rows_per_day=rows).tables().items()}
        for rows in (85, 340)
    )
    for name in PARTITIONED:
        assert large[name] == 4 * small[name] > 0, name


def test_work_has_the_shape_of_a_working_week() -> None:
    hours: dict[int, Counter[int]] = {weekday: Counter() for weekday in range(7)}
    channels: dict[int, set[str]] = {weekday: set() for weekday in range(7)}
    for row in rows("gestiones_unificadas"):
        at = row["timestamp_gestion"].astimezone(LIMA)
        hours[at.weekday()][at.hour] += 1
        channels[at.weekday()].add(row["canal_origen"])
    for weekday in range(5):
        assert set(hours[weekday]) <= set(range(7, 21))
        assert hours[weekday][13] < hours[weekday][10] > hours[weekday][19] > 0
        assert channels[weekday] == {"HUMANO", "BOT"}
    assert max(hours[5]) <= 13
    assert channels[6] == {"BOT"}
    assert hours[2].total() > hours[5].total() > hours[6].total() > 0


def test_portfolios_keep_their_debt_and_recover_more_of_it_each_day_of_a_month() -> None:
    figures: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows("dashboard_cobranzas"):
        if row["fecha_foto"].month == TODAY.month:
            figures.setdefault((row["archivo"], row["cartera"], row["servicio"]), []).append(row)
    assert len(figures) == 170
    for days in figures.values():
        assert len({row["deuda_asig"] for row in days}) == len({row["cuentas"] for row in days}) == 1
        for column in ("recupero", "cuentas_gestionadas", "cuentas_pdp"):
            assert [row[column] for row in days] == sorted(row[column] for row in days)
        assert days[-1]["recupero"] > days[0]["recupero"] > 0
        for row in days:
            assert row["cuentas_cd"] + row["cuentas_ci"] + row["cuentas_sc"] + row["cuentas_sg"] == row["cuentas"]
            assert row["deuda_act"] + row["recupero"] == row["deuda_asig"]
            assert row["cuentas_pdp"] <= row["cuentas_cd"]


def test_a_revision_corrects_accounts_and_withdraws_some() -> None:
    before = {(row["fecha_foto"], row["cuenta"]): values(row) for row in rows("asignaciones_clean")}
    after = {(row["fecha_foto"], row["cuenta"]): values(row) for row in rows("asignaciones_clean", revision=1)}
    assert len(before.keys() - after.keys()) == 4
    assert not after.keys() - before.keys()
    changed = {key for key in after if before[key] != after[key]}
    assert len(changed) == 40  # 5% of 400, on each of two days
    assert {day for day, _ in changed} == {TODAY, TODAY - timedelta(days=1)}


def test_values_that_trip_a_careless_reader_are_there() -> None:
    dashboard, agents = rows("dashboard_cobranzas"), rows("agentes")
    assert {row["servicio"] for row in dashboard} == {"FIJA", "MOVIL"}
    assert len({row["archivo"] for row in dashboard}) > 10
    for words in ({row["cartera"] for row in dashboard}, {row["nombre"] for row in agents}):
        assert any("ñ" in word.lower() for word in words)
        assert any(set("áéíóú") & set(word.lower()) for word in words)
    assert any(row["pct_conversion"] is None for row in dashboard)
    assert max(Counter(row["correo"] for row in agents).values()) == 2  # one agent stands there twice, with two teams


def test_debt_falls_within_the_month() -> None:
    debts = [r for r in rows("asignaciones_clean") if r["periodo_mes"] == "2026-07" and r["cuenta"] == "202607000000"]
    amounts = [row["deuda_actual"] for row in sorted(debts, key=lambda row: row["fecha_foto"])]
    assert len(amounts) == 15
    assert amounts == sorted(amounts, reverse=True)
    assert amounts[0] > amounts[-1]
