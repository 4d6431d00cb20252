"""What an alert says."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from pulso_etl.alerts.incidents import Failed, Notice, Recovered, Stage, State, Topic, absorb
from pulso_etl.alerts.messages import Message, duration, last_load, render, words_of
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.owed import Watermark
from pulso_etl.words import CAUSES, STATES

# 23:30 of 1 March in Lima.
AT = datetime(2026, 3, 2, 4, 30, tzinfo=UTC)
DAYS = DayRange(date(2026, 2, 27), date(2026, 3, 1))
UI = "https://dagster.example.com"


def message(*events: Failed | Recovered, stage: Stage = Stage.OPENED) -> Message:
    (incident,) = absorb([], events)
    return render(Notice(0, incident, stage), UI)


def failed(cause: Topic, table: str = "operation_data", name: str = "") -> Failed:
    return Failed(cause, table, AT, name, DAYS, "0a1b", "the source has no column hora")


@pytest.mark.parametrize("cause", [*Cause, *State])
@pytest.mark.parametrize("stage", list(Stage))
def test_every_alert_names_table_days_what_happened_and_what_to_do(cause: Topic, stage: Stage) -> None:
    recovered = [Recovered({cause}, "operation_data", AT + timedelta(hours=2))] if stage is Stage.RECOVERED else []
    told = message(failed(cause), *recovered, stage=stage)
    assert "Gestiones por hora" in told.title
    assert len(told.title) <= 90
    assert "Gestiones por hora (operation_data), del 27/02/2026 al 01/03/2026" in told.body
    assert told.body.startswith("Qué pasó: ")
    assert "\nQué hacer: " in told.body
    assert ("\nQué sigue: " in told.body) == (stage is not Stage.RECOVERED)
    assert "Desde: 01/03/2026 23:30 (hora de Lima)" in told.body
    assert ("/runs/0a1b" in told.body) == (stage is not Stage.RECOVERED)


def test_an_outage_reads_well() -> None:
    assert message(failed(Cause.SOURCE_UNAVAILABLE), failed(Cause.SOURCE_UNAVAILABLE, "dashboard_data")) == Message(
        "[Pulso] BigQuery no responde (2 tablas)",
        """\
Qué pasó: BigQuery no respondió y los datos no se actualizaron. Lo que ya estaba cargado sigue ahí, pero puede estar atrasado.
Desde: 01/03/2026 23:30 (hora de Lima)
Cargas fallidas: 2
Tablas:
- Gestiones por hora (operation_data), del 27/02/2026 al 01/03/2026
  Ejecución: https://dagster.example.com/runs/0a1b
- Tablero de cobranzas (dashboard_data), del 27/02/2026 al 01/03/2026
  Ejecución: https://dagster.example.com/runs/0a1b
Qué sigue: Pulso lo intenta de nuevo solo.
Qué hacer: por ahora nada. Si sigue así en una hora, avise al ingeniero de datos.
Detalle técnico: the source has no column hora""",
        "failure",
    )


def test_a_recovery_says_how_long_it_lasted() -> None:
    told = message(
        failed(Cause.SOURCE_UNAVAILABLE),
        Recovered({Cause.SOURCE_UNAVAILABLE}, "operation_data", AT + timedelta(hours=2, minutes=5)),
        stage=Stage.RECOVERED,
    )
    assert told.title == "[Pulso] Recuperado: BigQuery volvió a responder (Gestiones por hora)"
    assert "Hasta: 02/03/2026 01:35 (hora de Lima)\nDuró: 2 h 5 min\n" in told.body
    assert told.body.startswith("Qué pasó: BigQuery volvió a responder. El problema era «BigQuery no responde».\n")
    assert told.severity == "success"


def test_what_follows_from_an_outage_is_told_with_it() -> None:
    (outage, stale) = absorb([], [failed(Cause.SOURCE_UNAVAILABLE), failed(State.STALE)])
    body = render(Notice(0, outage, Stage.REMINDER, (stale,)), UI).body
    assert "\nAdemás: «Datos vencidos» (Gestiones por hora)\n" in body


def test_a_failed_check_is_named_and_a_budget_has_no_table() -> None:
    assert "- Gestiones por hora (operation_data), control nulls, del" in message(failed(State.CHECK, name="nulls")).body
    told = message(Failed(State.BUDGET_80, "", AT, detail="USD 41.20 de 50.00"))
    assert told.title == "[Pulso] Presupuesto de BigQuery al 80 %"
    assert "Detalle: USD 41.20 de 50.00" in told.body
    assert "Tablas:" not in told.body
    assert "/runs/" not in told.body


@pytest.mark.parametrize(
    ("watermark", "told"),
    [
        (
            Watermark(AT, date(2026, 3, 1)),
            "cargada por última vez el 01/03/2026 23:30 (hora de Lima), hace 1 d 3 h; último día cargado: 01/03/2026",
        ),
        (Watermark(AT, None), "cargada por última vez el 01/03/2026 23:30 (hora de Lima), hace 1 d 3 h"),
        (Watermark(None, None), "nunca se cargó"),
    ],
)
def test_a_stale_table_is_told_with_when_it_was_loaded(watermark: Watermark, told: str) -> None:
    assert last_load(watermark, AT + timedelta(days=1, hours=3)) == told
    stale = Failed(State.STALE, "operation_data", AT, detail=told)
    assert f"Detalle: {told}" in message(stale).body


def test_many_subjects_are_counted_rather_than_listed() -> None:
    told = message(*(failed(State.CHECK, name=f"check{n}") for n in range(40)))
    assert told.body.count("\n- ") == 16
    assert "- y 25 más" in told.body


def test_every_cause_has_words_of_its_own() -> None:
    topics = [*Cause, *State]
    assert set(CAUSES) == set(Cause)
    assert set(STATES) == set(State)
    assert len({words_of(topic).title for topic in topics}) == len(topics)
    assert all(all(vars(words_of(topic)).values()) for topic in topics)


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(0), "0 s"),
        (timedelta(seconds=45), "45 s"),
        (timedelta(minutes=5, seconds=1), "5 min 1 s"),
        (timedelta(hours=2), "2 h"),
        (timedelta(days=3, minutes=59), "3 d"),
        (timedelta(days=1, hours=1, minutes=59), "1 d 1 h"),
    ],
)
def test_durations(span: timedelta, text: str) -> None:
    assert duration(span) == text
