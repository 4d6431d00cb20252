"""Undoes a load for a person, and tells Dagster, so that it is in the asset's history."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta

import dagster as dg

from pulso_etl.refreshing.keys import asset_key
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import first_line
from pulso_etl.sync.ledger.undoings import Wish
from pulso_etl.sync.postgres.session_settings import Limits
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.target import Target
from pulso_etl.sync.undoing import Report, undo_load

logger = logging.getLogger(__name__)
Instance = Callable[[], AbstractContextManager[dg.DagsterInstance]]


def undo(settings: Settings, spec: TableSpec, wish: Wish, instance: Instance | None) -> Report:
    """Undoes the load in a session of its own. Without an instance this is a dry run, which changes nothing.

    Raises UndoRefused, TableBusy, psycopg.Error and other errors of `pulso_etl.sync.errors`. If only Dagster cannot be told, it
    logs a warning.
    """
    limits = Limits.of_work(spec.loading.timeout, timedelta(seconds=settings.lock_timeout_seconds))
    with Session(settings.database_url.get_secret_value(), "undo", limits).hold() as conn:
        report = undo_load(Target(conn, spec, settings.database_schema), wish, dry_run=instance is None)
    if instance is not None:
        try:
            with instance() as dagster:
                tell(dagster, spec, report, wish.by)
        except Exception as error:
            told = f"{spec.name}: load {report.change.load_id} is undone, and Dagster could not be told: {first_line(error)}"
            logger.warning("%s", told)
    return report


def tell(instance: dg.DagsterInstance, spec: TableSpec, report: Report, by: str) -> None:
    """Puts an observation of each day into the asset's history. It is no materialization: nothing was read from the source."""
    for day in report.undone.days:
        instance.report_runless_asset_event(
            dg.AssetObservation(
                asset_key(spec),
                partition=str(day.day),
                description=f"Load {report.change.load_id} was undone. The day is owed again.",
                metadata={
                    "undoes": report.change.load_id,
                    "load_id": report.load_id,
                    "asked_by": by,
                    "rows_inserted": day.new,
                    "rows_updated": day.changed,
                    "rows_deleted": day.gone,
                    "held_until": report.held_until.isoformat(),
                },
            )
        )
