"""The words of an alert, in Spanish for the supervisor who reads it: plain text that reads alike in e-mail and Slack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal

from pulso_etl.alerts.incidents import FAILURES, OUTAGES, Cause, Incident, Notice, Stage, Subject
from pulso_etl.sync.days import LIMA, DayRange
from pulso_etl.sync.owed import Watermark

SUBJECTS_SHOWN = 15
"""A message names so many subjects and counts the rest."""

Severity = Literal["info", "success", "warning", "failure"]


@dataclass(frozen=True)
class Message:
    """What a channel sends. The title fits an e-mail's subject; the body is lines of plain text."""

    title: str
    body: str
    severity: Severity


@dataclass(frozen=True)
class Wording:
    """How a cause is told: its title, the title of its end, what happened, and what the reader should do."""

    title: str
    recovered: str
    what: str
    to_do: str
    severity: Severity = "failure"


CALL_ENGINEER = "avise al ingeniero de datos"

WORDINGS: Mapping[Cause, Wording] = {
    Cause.SOURCE_UNAVAILABLE: Wording(
        "BigQuery no responde",
        "BigQuery volvió a responder",
        "BigQuery no respondió y los datos no se actualizaron. Lo que ya estaba cargado sigue ahí, pero puede estar atrasado.",
        f"por ahora nada; Pulso lo intenta de nuevo. Si en una hora no llega el aviso «Recuperado», {CALL_ENGINEER}.",
    ),
    Cause.DESTINATION_UNAVAILABLE: Wording(
        "PostgreSQL no está disponible",
        "PostgreSQL volvió a estar disponible",
        "La base de datos del tablero no aceptó la carga y los datos no se actualizaron. "
        "El tablero puede no abrir o estar atrasado.",
        f"si el tablero no abre o en media hora no llega el aviso «Recuperado», {CALL_ENGINEER}.",
    ),
    Cause.CONTRACT: Wording(
        "Datos de origen inválidos",
        "Los datos de origen vuelven a ser válidos",
        "BigQuery entregó datos que no encajan en la tabla (una columna que falta, un tipo distinto, una clave vacía o repetida). "
        "No se cargó nada: la tabla quedó como estaba.",
        f"{CALL_ENGINEER}: hay que corregir el origen. Repetir la carga no lo arregla.",
    ),
    Cause.SHRINK_REFUSED: Wording(
        "Faltan muchas filas en el origen",
        "El origen vuelve a traer sus filas",
        "BigQuery trae muchas menos filas que las que ya hay en la tabla. Por seguridad no se borró nada.",
        f"{CALL_ENGINEER}: si esas filas de verdad ya no existen, repita la carga con --allow-shrink.",
    ),
    Cause.COST_CAP: Wording(
        "Consulta demasiado cara",
        "La consulta vuelve a caber en el tope",
        "La consulta leería más datos que el tope permitido y BigQuery la rechazó sin cobrarla. No se cargó nada.",
        f"{CALL_ENGINEER}: cargue menos días a la vez o suba BIGQUERY_MAXIMUM_BYTES_BILLED.",
    ),
    Cause.TIMEOUT: Wording(
        "La carga tardó demasiado",
        "La carga volvió a terminar a tiempo",
        "La carga pasó su tiempo máximo y se detuvo. La tabla quedó como estaba.",
        f"por ahora nada; Pulso lo intenta de nuevo. Si se repite, {CALL_ENGINEER}.",
    ),
    Cause.RUN_FAILURE: Wording(
        "Falló la actualización",
        "La actualización volvió a funcionar",
        "La carga terminó con un error. La tabla quedó como estaba.",
        f"abra la ejecución para ver el error. Si se repite, {CALL_ENGINEER}.",
    ),
    Cause.STALE: Wording(
        "Datos vencidos",
        "Datos al día otra vez",
        "La tabla lleva más tiempo sin actualizarse que el permitido: el tablero muestra datos atrasados.",
        f"vea en Dagster si hay cargas detenidas o fallidas y lance una. Si falla, {CALL_ENGINEER}.",
        "warning",
    ),
    Cause.CHECK: Wording(
        "Control de calidad fallido",
        "El control de calidad vuelve a pasar",
        "Los datos se cargaron, pero no pasaron un control de calidad: use las cifras con cuidado.",
        f"{CALL_ENGINEER} y no publique estas cifras hasta que llegue el aviso «Recuperado».",
    ),
    Cause.RECOVERY_LIMIT: Wording(
        "Se agotaron los reintentos",
        "La carga volvió a funcionar",
        "Pulso intentó recuperar la tabla varias veces, sin éxito. Desde ahora insiste solo a su ritmo normal.",
        f"{CALL_ENGINEER}: corrija la causa y lance la carga a mano.",
    ),
    Cause.BUDGET_80: Wording(
        "Presupuesto de BigQuery al 80 %",
        "Presupuesto de BigQuery bajo control",
        "Las consultas ya gastaron el 80 % del presupuesto del día.",
        "evite recargas largas hasta mañana, o pida que suban el presupuesto.",
        "warning",
    ),
    Cause.BUDGET_100: Wording(
        "Presupuesto de BigQuery agotado",
        "Presupuesto de BigQuery otra vez disponible",
        "Las consultas gastaron todo el presupuesto del día. Hasta la medianoche solo se carga lo que se pide con --force.",
        f"{CALL_ENGINEER}: decida si se sube el presupuesto o se espera a mañana.",
    ),
    Cause.DRIFT: Wording(
        "Cambiaron las columnas del origen",
        "Las columnas del origen vuelven a ser las conocidas",
        "BigQuery trae columnas que la tabla no conoce. Lo demás se cargó como siempre; esas columnas no.",
        f"nada urgente; {CALL_ENGINEER} para que decida si se agregan.",
        "warning",
    ),
    Cause.QUARANTINE: Wording(
        "Demasiadas filas en cuarentena",
        "Filas en cuarentena bajo el límite",
        "Muchas filas del origen se apartaron por inválidas: los totales pueden quedar cortos.",
        f"{CALL_ENGINEER}: hay que revisar las filas apartadas y corregir el origen.",
        "warning",
    ),
}


def render(notice: Notice, dagster_ui_url: str, tenant: str = "") -> Message:
    """The message of a notice, which names the tenant. Times are America/Lima; runs are linked at `dagster_ui_url`/runs/ID."""
    incident, wording = notice.incident, WORDINGS[notice.incident.cause]
    if notice.stage is Stage.RECOVERED:
        return _recovered(incident, wording, tenant)
    subjects = incident.failing
    prefix = "Sigue: " if notice.stage is Stage.REMINDER else ""
    lines = [f"Qué pasó: {wording.what}", f"Desde: {_instant(incident.first_seen)}", *_failures(incident)]
    lines += _subjects(incident, subjects, dagster_ui_url)
    lines += [f"Además: «{WORDINGS[other.cause].title}» ({_names(other.failing)})" for other in notice.held]
    lines.append(f"Qué hacer: {wording.to_do}")
    if incident.cause in OUTAGES and (detail := max(subjects, key=lambda subject: subject.last).detail):
        lines.append(f"Detalle técnico: {detail}")
    return Message(_title(prefix + wording.title, subjects, tenant), "\n".join(lines), wording.severity)


def _recovered(incident: Incident, wording: Wording, tenant: str) -> Message:
    ended = incident.over_at or incident.last_seen
    lines = [
        f"Qué pasó: {wording.recovered}. El problema era «{wording.title}».",
        f"Desde: {_instant(incident.first_seen)}",
        f"Hasta: {_instant(ended)}",
        f"Duró: {duration(ended - incident.first_seen)}",
        *_failures(incident),
        *_subjects(incident, incident.subjects, None),
        f"Qué hacer: nada{_still_to_load(incident)}.",
    ]
    return Message(_title(f"Recuperado: {wording.recovered}", incident.subjects, tenant), "\n".join(lines), "success")


def _still_to_load(incident: Incident) -> str:
    tables = _names(subject for subject in incident.failing if subject.table)
    return f"; Pulso vuelve a cargar lo que falta: {tables}" if tables else ""


def trial_message(now: datetime, tenant: str = "") -> Message:
    """What `pulso-etl alert-test` sends."""
    return Message(
        f"{_sender(tenant)} Mensaje de prueba",
        f"Qué pasó: nada; alguien probó los avisos de Pulso.\nHora: {_instant(now)}\nQué hacer: nada.",
        "info",
    )


def duration(span: timedelta) -> str:
    """A span in its two largest units: "2 h 5 min", "3 d 1 h", "45 s"."""
    seconds = max(0, int(span.total_seconds()))
    days, hours, minutes = seconds // 86_400, seconds // 3600 % 24, seconds // 60 % 60
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds % 60, "s")]
    first = next((position for position, (value, _) in enumerate(units) if value), len(units) - 1)
    return " ".join(f"{value} {unit}" for value, unit in units[first : first + 2] if value) or "0 s"


def last_load(watermark: Watermark, now: datetime) -> str:
    """When a table was loaded, and up to which day: "cargada el 01/03/2026 23:30 (hora de Lima), hace 2 h 5 min; …"."""
    at, day = watermark.last_extracted_at, watermark.last_partition
    loaded = f"cargada por última vez el {_instant(at)}, hace {duration(now - at)}" if at else "nunca se cargó"
    return f"{loaded}; último día cargado: {_day(day)}" if day else loaded


def _sender(tenant: str) -> str:
    return f"[Pulso {tenant}]" if tenant else "[Pulso]"


def _title(title: str, subjects: Sequence[Subject], tenant: str) -> str:
    tables = list(dict.fromkeys(subject.table for subject in subjects if subject.table))
    suffix = f" ({tables[0] if len(tables) == 1 else f'{len(tables)} tablas'})" if tables else ""
    return f"{_sender(tenant)} {title}{suffix}"


def _subjects(incident: Incident, subjects: Sequence[Subject], dagster_ui_url: str | None) -> list[str]:
    """A line for each table with its days; with an address also its run, and its error where each table has one of its own."""
    lines: list[str] = []
    for subject in subjects[:SUBJECTS_SHOWN]:
        parts = [subject.table, _name(incident.cause, subject), _days(subject.window)]
        if named := ", ".join(part for part in parts if part):
            lines.append(f"- {named}")
        if dagster_ui_url and subject.run_id:
            lines.append(f"  Ejecución: {dagster_ui_url}/runs/{subject.run_id}")
        if dagster_ui_url and subject.detail and incident.cause not in OUTAGES:
            lines.append(f"  Detalle: {subject.detail}")
    if len(subjects) > SUBJECTS_SHOWN:
        lines.append(f"- y {len(subjects) - SUBJECTS_SHOWN} más")
    return ["Tablas:", *lines] if any(subject.table for subject in subjects) else lines


def _name(cause: Cause, subject: Subject) -> str:
    return f"control {subject.name}" if subject.name and cause is Cause.CHECK else subject.name


def _failures(incident: Incident) -> list[str]:
    """How many runs failed; of other causes the count says only how often somebody looked."""
    return [f"Cargas fallidas: {incident.failed_runs}"] if incident.cause in FAILURES else []


def _names(subjects: Iterable[Subject]) -> str:
    return ", ".join(dict.fromkeys(subject.table for subject in subjects))


def _instant(at: datetime) -> str:
    return f"{at.astimezone(LIMA):%d/%m/%Y %H:%M} (hora de Lima)"


def _day(day: date) -> str:
    return f"{day:%d/%m/%Y}"


def _days(window: DayRange | None) -> str:
    if window is None:
        return ""
    return _day(window.start) if window.days == 1 else f"del {_day(window.start)} al {_day(window.end)}"
