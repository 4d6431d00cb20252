"""Checks whether a refresh could run now. No check of a part costs money."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from time import monotonic

from pulso_etl.api.dagster_client import DagsterClient
from pulso_etl.api.database import Database
from pulso_etl.api.models import Health, Part, PartState
from pulso_etl.bigquery.reach import Reach
from pulso_etl.sync.errors import LauncherUnavailable, PulsoError, first_line
from pulso_etl.sync.spec import TableSpec

LOOK_SECONDS = 6.0
"""A part that needs longer counts as failing, because a probe does not wait long."""
BIGQUERY_SECONDS = 60.0
"""A result for BigQuery is kept this long. The other parts are checked every time."""
logger = logging.getLogger(__name__)

Probe = Callable[[], Awaitable[str]]


class Unwell(LauncherUnavailable):
    """A part answers but does not work."""


class HealthProbe:
    """Checks PostgreSQL, BigQuery and Dagster with daemon and code server. With `discreet`, only the log has a failure's reason."""

    def __init__(
        self,
        database: Database,
        dagster: DagsterClient,
        source: Reach | None,
        *,
        table: TableSpec | None,
        discreet: bool,
    ) -> None:
        """Without a `source` it does not check BigQuery. It asks the code server about the `table`, if there is one."""
        self.table = table
        self.discreet = discreet
        self.database = database
        self.dagster = dagster
        self.source = source
        self._bigquery_seen: tuple[float, Part] | None = None

    async def look(self) -> Health:
        """The state of every part. Raises nothing."""
        postgresql, dagster, code, bigquery = await asyncio.gather(
            _part(self._postgresql), self._dagster_parts(), self._code_parts(), self._bigquery_parts()
        )
        parts = {"postgresql": postgresql, **dagster, **code, **bigquery}
        failing = {name: part for name, part in parts.items() if part.state is PartState.FAILING}
        for name, part in failing.items():
            logger.warning("%s: %s", name, part.message)
            if self.discreet:
                parts[name] = part.model_copy(update={"message": "fails; the reason is in the log of the API"})
        ready = all(part.state is PartState.OK for part in parts.values())
        return Health(ready=ready, parts=parts, checked_at=datetime.now(UTC))

    async def _postgresql(self) -> str:
        async with self.database.connection() as conn:
            await conn.execute("SELECT 1")
        return "answers"

    async def _code_parts(self) -> dict[str, Part]:
        table = self.table
        if table is None:
            return {}

        async def code() -> str:
            await self.dagster.ask_code(table)
            return "answers"

        return {"code": await _part(code)}

    async def _dagster_parts(self) -> dict[str, Part]:
        """The webserver and the daemon, by one answer. Without an answer, both are unknown."""
        heard: dict[str, bool] = {}

        async def webserver() -> str:
            version, daemons = await self.dagster.daemons()
            heard.update(daemons)
            return f"version {version}"

        async def daemon() -> str:
            if late := [name.lower() for name, in_time in heard.items() if not in_time]:
                raise Unwell(f"no heartbeat of {', '.join(late)}: is `dagster-daemon run` running?")
            return f"{len(heard)} healthy"

        answered = await _part(webserver)
        return {"dagster": answered, "daemon": await _part(daemon) if answered.state is PartState.OK else answered}

    async def _bigquery_parts(self) -> dict[str, Part]:
        return {} if self.source is None else {"bigquery": await self._bigquery_part(self.source)}

    async def _bigquery_part(self, source: Reach) -> Part:
        if self._bigquery_seen is None or monotonic() - self._bigquery_seen[0] > BIGQUERY_SECONDS:
            part = await _part(lambda: _answer_of(source))
            if part.state is PartState.FAILING:
                return part
            self._bigquery_seen = (monotonic(), part)
        return self._bigquery_seen[1]


async def _answer_of(source: Reach) -> str:
    await asyncio.to_thread(source.ask, LOOK_SECONDS - 1)
    return "answers"


async def _part(probe: Probe) -> Part:
    began = monotonic()
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            state, message = PartState.OK, await probe()
    except TimeoutError:
        state, message = PartState.FAILING, f"no answer within {LOOK_SECONDS:.0f} s"
    except (PulsoError, OSError) as error:
        # Only the first line, because the next lines may quote the request.
        state, message = PartState.FAILING, first_line(error)[:300]
    return Part(state=state, message=message, seconds=round(monotonic() - began, 3))
