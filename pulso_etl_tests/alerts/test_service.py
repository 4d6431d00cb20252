"""Alerts end to end: a real PostgreSQL, a real SMTP server, a real HTTP receiver."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from pydantic import SecretStr

from pulso_etl.alerts.incidents import Failed, Recovered, State, succeeded
from pulso_etl.alerts.messages import table_title
from pulso_etl.alerts.service import Alerts
from pulso_etl.local.postgres import EmbeddedPostgres
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl_tests.alerts.receivers import Inbox, MakeSettings, Receiver
from pulso_etl_tests.databases import postgres

START = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
TABLES = ("dashboard_data", "evolution_data", "assignment_data", "operation_data", "productivity_data")
DAYS = DayRange(date(2026, 3, 1), date(2026, 3, 2))


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A server of the test's own. It is not in pytest's folder, because the server's user may not enter that."""
    with TemporaryDirectory() as folder, postgres(Path(folder) / "data") as server:
        yield server


def outage(at: datetime, table: str = "operation_data") -> Failed:
    return Failed(Cause.SOURCE_UNAVAILABLE, table, at, window=DAYS, run_id="0a1b", detail="503 añejo")


def json_url(receiver: Receiver) -> str:
    return f"json://127.0.0.1:{receiver.port}/hook"


def test_an_outage_is_one_message_on_every_channel_and_one_when_it_is_over(
    inbox: Inbox, receiver: Receiver, make_settings: MakeSettings, conn: psycopg.Connection
) -> None:
    alerts = Alerts(make_settings(f"mailto://127.0.0.1:{inbox.port}?from=a@example.com, {json_url(receiver)}"))
    for tick in range(30):
        now = START + tick * MINUTE
        assert alerts.flush(now, [outage(now, table) for table in TABLES]).stored
    assert receiver.titles() == ["[Pulso] BigQuery no responde (5 tablas)"]
    assert [mail["Subject"] for mail in inbox.mails] == receiver.titles()
    assert "http://127.0.0.1:3000/runs/0a1b" in inbox.mails[0].get_content()
    row = conn.execute("SELECT cause, state, first_seen, last_seen, count, tables, notified_at FROM etl_alerts").fetchone()
    assert row == ("source_unavailable", "open", START, START + 29 * MINUTE, 150, list(TABLES), START + MINUTE)
    end = START + HOUR
    # A run that began before the last failure shows nothing of BigQuery; one that began after it shows that it is back.
    alerts.flush(end, [succeeded(TABLES[0], end, began=START)])
    alerts.flush(end + HOUR)
    assert len(receiver.posts) == 1
    alerts.flush(end + 2 * HOUR, [succeeded(TABLES[1], end + 2 * HOUR, began=end + HOUR)])
    alerts.flush(end + 3 * HOUR)
    alerts.flush(end + 4 * HOUR, [succeeded(table, end + 4 * HOUR) for table in TABLES])
    assert receiver.titles()[1:] == ["[Pulso] Recuperado: BigQuery volvió a responder (5 tablas)"]
    assert [mail["Subject"] for mail in inbox.mails] == receiver.titles()
    for told in (receiver.posts[1][1]["message"], inbox.mails[1].get_content()):
        assert "Duró: 3 h" in told
        assert f"vuelve a cargar lo que falta: {', '.join(map(table_title, TABLES[2:]))}." in told
    assert conn.execute("SELECT state, closed_at FROM etl_alerts").fetchall() == [("closed", end + 2 * HOUR)]


def test_recorded_events_are_told_by_a_flush_of_another_process(receiver: Receiver, make_settings: MakeSettings) -> None:
    settings = make_settings(json_url(receiver))
    assert Alerts(settings).record([outage(START)])
    assert receiver.posts == []
    Alerts(settings).flush(START + MINUTE)
    assert len(receiver.posts) == 1


def test_alerts_are_kept_where_no_channel_is_set(make_settings: MakeSettings, conn: psycopg.Connection) -> None:
    alerts = Alerts(make_settings())
    alerts.flush(START, [outage(START)])
    assert alerts.flush(START + MINUTE).deliveries == ()
    assert conn.execute("SELECT title, pending FROM etl_alert_messages").fetchall() == [
        ("[Pulso] BigQuery no responde (Gestiones por hora)", [])
    ]


def test_a_failing_channel_is_tried_again_and_the_others_are_not_told_twice(
    inbox: Inbox, receiver: Receiver, make_settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    alerts = Alerts(make_settings(f"mailto://127.0.0.1:{inbox.port}?from=a@example.com {json_url(receiver)}/s3cret"))
    receiver.status = 500
    alerts.flush(START, [outage(START)])
    flushed = alerts.flush(START + MINUTE)
    assert [(delivery.channel, delivery.ok) for delivery in flushed.deliveries] == [
        ("mailto://127.0.0.1", True),
        ("json://127.0.0.1", False),
    ]
    assert "json://127.0.0.1: " in caplog.text
    assert "s3cret" not in caplog.text
    receiver.status = 200
    assert [delivery.channel for delivery in alerts.flush(START + 2 * MINUTE).deliveries] == ["json://127.0.0.1"]
    assert alerts.flush(START + 3 * MINUTE).deliveries == ()
    assert (len(inbox.mails), len(receiver.posts)) == (1, 2)


def test_a_channel_that_stays_away_is_tried_ever_less_often_and_given_up_after_a_day(
    receiver: Receiver, make_settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    alerts = Alerts(make_settings(json_url(receiver), alert_reminder_hours=100))
    receiver.status = 500
    alerts.flush(START, [outage(START)])
    ticks = [*range(1, 12), *range(30, 26 * 60, 15)]
    tries = [tick for tick in ticks if alerts.flush(START + tick * MINUTE).deliveries]
    assert tries[:5] == [1, 2, 3, 5, 9]
    # From then on one every half hour. The ticks come twice as often.
    assert 45 <= len(tries) <= 55
    assert 24 * 60 < tries[-1] < 25 * 60
    assert "given up for json://127.0.0.1" in caplog.text


def test_a_channel_that_fails_costs_one_time_out_a_flush(receiver: Receiver, make_settings: MakeSettings) -> None:
    alerts = Alerts(make_settings("json://127.0.0.1:1"))
    failures = [Failed(State.CHECK, "a", START), Failed(State.STALE, "b", START), Failed(State.DRIFT, "c", START)]
    alerts.flush(START, failures)
    flushed = alerts.flush(START + MINUTE)
    assert (flushed.due, len(flushed.deliveries)) == (3, 1)


def test_what_a_channel_has_not_had_is_replaced_by_what_is_newer(receiver: Receiver, make_settings: MakeSettings) -> None:
    alerts = Alerts(make_settings(json_url(receiver)))
    receiver.status = 500
    alerts.flush(START, [outage(START)])
    alerts.flush(START + MINUTE)
    alerts.flush(START + HOUR, [succeeded("operation_data", START + HOUR)])
    receiver.status, posts = 200, len(receiver.posts)
    alerts.flush(START + 2 * HOUR)
    assert receiver.titles()[posts:] == ["[Pulso] Recuperado: BigQuery volvió a responder (Gestiones por hora)"]


def test_two_flushes_at_once_send_once(receiver: Receiver, make_settings: MakeSettings) -> None:
    settings = make_settings(json_url(receiver))
    Alerts(settings).record([outage(START), Failed(State.STALE, "dashboard_data", START)])
    receiver.delay = 0.3
    barrier = threading.Barrier(4)

    def flush() -> None:
        alerts = Alerts(settings)
        barrier.wait()
        alerts.flush(START + MINUTE)

    threads = [threading.Thread(target=flush) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(receiver.titles()) == [
        "[Pulso] BigQuery no responde (Gestiones por hora)",
        "[Pulso] Datos vencidos (Tablero de cobranzas)",
    ]


def test_a_session_lost_between_sending_and_noting_repeats_one_message(
    receiver: Receiver, make_settings: MakeSettings, server_url: str
) -> None:
    alerts = Alerts(make_settings(json_url(receiver)))
    alerts.record([outage(START), Failed(State.STALE, "dashboard_data", START)])

    def kill_the_sender() -> None:
        receiver.before_answer = lambda: None
        with psycopg.connect(server_url, autocommit=True) as conn:
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pulso-etl alerts'")

    receiver.before_answer = kill_the_sender
    assert not alerts.flush(START + MINUTE).stored
    assert len(receiver.posts) == 1
    alerts.flush(START + MINUTE + timedelta(seconds=30))
    alerts.flush(START + 10 * MINUTE)
    first = "[Pulso] BigQuery no responde (Gestiones por hora)"
    assert receiver.titles() == [first, first, "[Pulso] Datos vencidos (Tablero de cobranzas)"]


def test_the_database_being_away_is_told_from_memory_and_nothing_is_lost(
    receiver: Receiver, make_settings: MakeSettings, server: EmbeddedPostgres
) -> None:
    settings = make_settings(json_url(receiver), database_url=SecretStr(server.create_database("pulso")))
    alerts = Alerts(settings)
    assert alerts.flush(START).stored
    server.stop()
    away = START + MINUTE
    assert not alerts.record([outage(away)])
    for tick in range(20):
        now = away + tick * MINUTE
        lost = Failed(Cause.DESTINATION_UNAVAILABLE, "dashboard_data", now)
        assert not alerts.flush(now, [lost]).stored
    assert receiver.titles() == ["[Pulso] PostgreSQL no está disponible"]
    server.start()
    back = away + 20 * MINUTE
    for tick in range(10):
        assert alerts.flush(back + tick * MINUTE).stored
    # The source's failure joined the outage. PostgreSQL's outage is over when its table is loaded.
    assert sorted(receiver.titles()[1:]) == [
        "[Pulso] BigQuery no responde (Gestiones por hora)",
        "[Pulso] Recuperado: PostgreSQL volvió a estar disponible (Tablero de cobranzas)",
    ]
    assert "Duró: 20 min" in next(post["message"] for _, post in receiver.posts if "Recuperado" in post["title"])
    with psycopg.connect(settings.database_url.get_secret_value()) as conn:
        rows = conn.execute(f"SELECT cause, state FROM {settings.database_schema}.etl_alerts ORDER BY cause").fetchall()
    assert rows == [("destination_unavailable", "closed"), ("source_unavailable", "open")]
    # The second outage is a new one.
    server.stop()
    for tick in range(3):
        alerts.flush(back + 3 * HOUR + tick * MINUTE)
    assert receiver.titles()[3:] == ["[Pulso] PostgreSQL no está disponible"]


def test_a_short_absence_of_the_database_is_not_told(
    receiver: Receiver, make_settings: MakeSettings, server: EmbeddedPostgres
) -> None:
    alerts = Alerts(make_settings(json_url(receiver), database_url=SecretStr(server.create_database("pulso"))))
    server.stop()
    alerts.flush(START)
    server.start()
    for tick in range(1, 10):
        alerts.flush(START + tick * MINUTE / 2)
    assert receiver.posts == []


def test_an_outage_of_the_database_that_was_told_is_not_told_again_from_memory(
    receiver: Receiver, make_settings: MakeSettings, server: EmbeddedPostgres
) -> None:
    alerts = Alerts(make_settings(json_url(receiver), database_url=SecretStr(server.create_database("pulso"))))
    alerts.flush(START, [Failed(Cause.DESTINATION_UNAVAILABLE, "dashboard_data", START)])
    alerts.flush(START + MINUTE)
    server.stop()
    for tick in range(2, 10):
        alerts.flush(START + tick * MINUTE)
    server.start()
    for tick in range(10, 20):
        alerts.flush(START + tick * MINUTE)
    assert receiver.titles() == [
        "[Pulso] PostgreSQL no está disponible (Tablero de cobranzas)",
        "[Pulso] Recuperado: PostgreSQL volvió a estar disponible (Tablero de cobranzas)",
    ]
    assert "Duró: 10 min" in receiver.posts[1][1]["message"]


@pytest.mark.usefixtures("lima")
def test_an_outage_is_told_once_with_its_end_and_true_length_although_the_process_is_a_new_one_each_time(
    receiver: Receiver, make_settings: MakeSettings, server: EmbeddedPostgres, tmp_path: Path
) -> None:
    settings = make_settings(
        json_url(receiver), database_url=SecretStr(server.create_database("pulso")), dagster_home=tmp_path, alert_reminder_hours=2
    )

    def look(now: datetime) -> None:
        Alerts(settings).flush(now)

    look(START)
    server.stop()
    for tick in range(1, 90):
        look(START + tick * MINUTE)
    assert receiver.titles() == ["[Pulso] PostgreSQL no está disponible"]
    server.start()
    for tick in range(91, 100):
        look(START + tick * MINUTE)
    assert receiver.titles()[1:] == ["[Pulso] Recuperado: PostgreSQL volvió a estar disponible"]
    assert "Duró: 1 h 30 min" in receiver.posts[1][1]["message"]
    # The next outage is a new one.
    server.stop()
    for tick in range(200, 203):
        look(START + tick * MINUTE)
    assert receiver.titles()[2:] == ["[Pulso] PostgreSQL no está disponible"]
    assert f"Desde: {START + 200 * MINUTE - 5 * HOUR:%d/%m/%Y %H:%M}" in receiver.posts[2][1]["message"]


LOOKS = """
import time
from datetime import UTC, datetime
from pulso_etl.alerts.messages import table_title
from pulso_etl.alerts.service import Alerts
from pulso_etl.sync.errors import Cause
from pulso_etl.settings import load_settings

alerts = Alerts(load_settings())
while True:
    alerts.flush(datetime.now(UTC))
    print(flush=True)
    time.sleep(0.1)
"""
"""A process that looks again and again, as Dagster keeps one until it reloads the workspace."""


class Looker:
    """The process that looks. It writes a line of output at the end of each look."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = {**os.environ, **env}

    def reload(self, looks: int = 3) -> None:
        """Kills the process, starts a new one that knows nothing of the first, and waits for its first `looks` looks."""
        self.end()
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOOKS], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.wait(looks)

    def wait(self, looks: int) -> None:
        assert self.process.stdout is not None
        for _ in range(looks):
            assert self.process.stdout.readline()

    def end(self) -> None:
        if hasattr(self, "process"):
            self.process.kill()
            self.process.communicate()


@pytest.mark.usefixtures("processes")
def test_real_outages_are_told_one_by_one_by_processes_that_are_replaced_all_the_time(
    inbox: Inbox, receiver: Receiver, server: EmbeddedPostgres, tmp_path: Path
) -> None:
    url, spans = server.create_database("pulso"), []
    mail = f"mailto://127.0.0.1:{inbox.port}?from=a@example.com"
    looker = Looker(
        {
            "DATABASE_URL": url,
            "ALERT_URLS": f"{mail} {json_url(receiver)}",
            "ALERT_GATHER_SECONDS": "1",
            "DAGSTER_HOME": str(tmp_path),
        }
    )
    try:
        looker.reload()
        # The process is replaced during the first outage and at its end. The new process sees the second outage itself.
        for look in (looker.reload, looker.wait):
            server.stop()
            gone = datetime.now(UTC)
            look(3)
            look(12)
            server.start()
            back = datetime.now(UTC)
            look(3)
            spans.append((gone, back, datetime.now(UTC)))
            looker.wait(15)
    finally:
        looker.end()
    begun, ended = "[Pulso] PostgreSQL no está disponible", "[Pulso] Recuperado: PostgreSQL volvió a estar disponible"
    assert receiver.titles() == [begun, ended] * 2
    assert [mail["Subject"] for mail in inbox.mails] == [begun, ended] * 2
    with psycopg.connect(url) as conn:
        told = conn.execute("SELECT first_seen, closed_at FROM etl_alerts ORDER BY id").fetchall()
    assert len(told) == 2
    for (first, closed), (gone, back, seen) in zip(told, spans, strict=True):
        assert gone - timedelta(seconds=1) < first < back
        assert back - timedelta(seconds=1) < closed < seen


def test_a_file_that_can_not_be_read_or_written_costs_no_alert(
    receiver: Receiver, make_settings: MakeSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = SecretStr("postgresql://etl@127.0.0.1:1/none")
    settings = make_settings(json_url(receiver), database_url=url, dagster_home=tmp_path)
    (folder := tmp_path / "storage" / "pulso_etl").mkdir(parents=True)
    (folder / f"outage.{settings.database_schema}.json").write_text("{")
    alerts = Alerts(settings)
    for tick in range(3):
        alerts.flush(START + tick * MINUTE)
    assert receiver.titles() == ["[Pulso] PostgreSQL no está disponible"]
    assert "can't be read" in caplog.text
    nowhere = make_settings(json_url(receiver), database_url=url, dagster_home=Path("/proc/none"))
    alerts = Alerts(nowhere)
    for tick in range(3):
        alerts.flush(START + tick * MINUTE)
    assert len(receiver.titles()) == 2


def test_where_there_was_no_outage_yet_nothing_is_logged(
    make_settings: MakeSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alerts = Alerts(make_settings("", dagster_home=tmp_path))
    for tick in range(3):
        alerts.flush(START + tick * MINUTE)
    assert caplog.text == ""


def test_an_alert_that_can_not_be_delivered_raises_nothing(make_settings: MakeSettings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = SecretStr("postgresql://etl:s3cret@127.0.0.1:1/none")
    alerts = Alerts(make_settings("json://127.0.0.1:1/s3cret slack://s3cret", database_url=url))
    for tick in range(3):
        flushed = alerts.flush(START + tick * MINUTE, [outage(START), Recovered({State.STALE}, "a", START)])
    assert not flushed.stored
    assert [delivery.ok for delivery in flushed.deliveries] == [False, False]
    assert "s3cret" not in caplog.text
