"""The text of an alert, in Spanish for the supervisor who reads it: plain text that reads alike in e-mail and Slack.

The words for each cause and state stand in `pulso_etl.words`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from pulso_etl.alerts.incidents import FAILURES, OUTAGES, Incident, Notice, Stage, State, Subject, Topic
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.owed import Watermark
from pulso_etl.sync.zone import DEFAULT_ZONE, Zone
from pulso_etl.tables import TABLES
from pulso_etl.words import CAUSES, STATES, Severity, Words, place

SUBJECTS_SHOWN = 15
"""A message names so many subjects and counts the rest."""


@dataclass(frozen=True)
class Message:
    """What a channel sends. The title fits an e-mail's subject; the body is lines of plain text."""

    title: str
    body: str
    severity: Severity


def words_of(topic: Topic) -> Words:
    """How a cause or a state is told."""
    return CAUSES[topic] if isinstance(topic, Cause) else STATES[topic]


def table_title(table: str) -> str:
    """What people call the table; its name, where it is not one of ours."""
    return (TABLES[table].title if table in TABLES else "") or table


def render(notice: Notice, dagster_ui_url: str, tenant: str = "", timezone: str = DEFAULT_ZONE) -> Message:
    """The message of a notice, which names the tenant. Times are those of the zone; runs are linked at `dagster_ui_url`/runs/ID."""
    incident, words = notice.incident, words_of(notice.incident.cause)
    if notice.stage is Stage.RECOVERED:
        return _recovered(incident, words, tenant, timezone)
    subjects = incident.failing
    prefix = "Sigue: " if notice.stage is Stage.REMINDER else ""
    lines = [f"Qué pasó: {words.what}", f"Desde: {_instant(incident.first_seen, timezone)}", *_failures(incident)]
    lines += _subjects(incident, subjects, dagster_ui_url)
    lines += [f"Además: «{words_of(other.cause).title}» ({_names(other.failing)})" for other in notice.held]
    lines += [f"Qué sigue: {words.next}", f"Qué hacer: {words.todo}"]
    if incident.cause in OUTAGES and (detail := max(subjects, key=lambda subject: subject.last).detail):
        lines.append(f"Detalle técnico: {detail}")
    return Message(_title(prefix + words.title, subjects, tenant), "\n".join(lines), words.severity)


def _recovered(incident: Incident, words: Words, tenant: str, timezone: str) -> Message:
    ended = incident.over_at or incident.last_seen
    lines = [
        f"Qué pasó: {words.recovered}. El problema era «{words.title}».",
        f"Desde: {_instant(incident.first_seen, timezone)}",
        f"Hasta: {_instant(ended, timezone)}",
        f"Duró: {duration(ended - incident.first_seen)}",
        *_failures(incident),
        *_subjects(incident, incident.subjects, None),
        f"Qué hacer: nada{_still_to_load(incident)}.",
    ]
    return Message(_title(f"Recuperado: {words.recovered}", incident.subjects, tenant), "\n".join(lines), "success")


def _still_to_load(incident: Incident) -> str:
    tables = _names(subject for subject in incident.failing if subject.table)
    return f"; Pulso vuelve a cargar lo que falta: {tables}" if tables else ""


def trial_message(now: datetime, tenant: str = "", timezone: str = DEFAULT_ZONE) -> Message:
    """What `pulso-etl alert-test` sends."""
    return Message(
        f"{_sender(tenant)} Mensaje de prueba",
        f"Qué pasó: nada; alguien probó los avisos de Pulso.\nHora: {_instant(now, timezone)}\nQué hacer: nada.",
        "info",
    )


def duration(span: timedelta) -> str:
    """A span in its two largest units: "2 h 5 min", "3 d 1 h", "45 s"."""
    seconds = max(0, int(span.total_seconds()))
    days, hours, minutes = seconds // 86_400, seconds // 3600 % 24, seconds // 60 % 60
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds % 60, "s")]
    first = next((position for position, (value, _) in enumerate(units) if value), len(units) - 1)
    return " ".join(f"{value} {unit}" for value, unit in units[first : first + 2] if value) or "0 s"


def last_load(watermark: Watermark, now: datetime, timezone: str = DEFAULT_ZONE) -> str:
    """When a table was loaded, and up to which day: "cargada el 01/03/2026 23:30 (hora de Lima), hace 2 h 5 min; …"."""
    at, day = watermark.last_extracted_at, watermark.last_partition
    loaded = f"cargada por última vez el {_instant(at, timezone)}, hace {duration(now - at)}" if at else "nunca se cargó"
    return f"{loaded}; último día cargado: {_day(day)}" if day else loaded


def _sender(tenant: str) -> str:
    return f"[Pulso {tenant}]" if tenant else "[Pulso]"


def _title(title: str, subjects: Sequence[Subject], tenant: str) -> str:
    tables = list(dict.fromkeys(subject.table for subject in subjects if subject.table))
    suffix = f" ({table_title(tables[0]) if len(tables) == 1 else f'{len(tables)} tablas'})" if tables else ""
    return f"{_sender(tenant)} {title}{suffix}"


def _subjects(incident: Incident, subjects: Sequence[Subject], dagster_ui_url: str | None) -> list[str]:
    """A line for each table with its days; with an address also its run, and its error where each table has one of its own."""
    lines: list[str] = []
    for subject in subjects[:SUBJECTS_SHOWN]:
        parts = [_table(subject.table), _name(incident.cause, subject), _days(subject.window)]
        if named := ", ".join(part for part in parts if part):
            lines.append(f"- {named}")
        if dagster_ui_url and subject.run_id:
            lines.append(f"  Ejecución: {dagster_ui_url}/runs/{subject.run_id}")
        if dagster_ui_url and subject.detail and incident.cause not in OUTAGES:
            lines.append(f"  Detalle: {subject.detail}")
    if len(subjects) > SUBJECTS_SHOWN:
        lines.append(f"- y {len(subjects) - SUBJECTS_SHOWN} más")
    return ["Tablas:", *lines] if any(subject.table for subject in subjects) else lines


def _table(name: str) -> str:
    """The table by its title, and by its name for those who look it up."""
    return name if table_title(name) == name else f"{table_title(name)} ({name})"


def _name(cause: Topic, subject: Subject) -> str:
    return f"control {subject.name}" if subject.name and cause is State.CHECK else subject.name


def _failures(incident: Incident) -> list[str]:
    """How many runs failed; of other causes the count says only how often somebody looked."""
    return [f"Cargas fallidas: {incident.failed_runs}"] if incident.cause in FAILURES else []


def _names(subjects: Iterable[Subject]) -> str:
    return ", ".join(dict.fromkeys(table_title(subject.table) for subject in subjects))


def _instant(at: datetime, timezone: str) -> str:
    return f"{Zone(timezone).local(at):%d/%m/%Y %H:%M} (hora {place(timezone)})"


def _day(day: date) -> str:
    return f"{day:%d/%m/%Y}"


def _days(window: DayRange | None) -> str:
    if window is None:
        return ""
    return _day(window.start) if window.days == 1 else f"del {_day(window.start)} al {_day(window.end)}"
