"""Calls Dagster over the GraphQL of its webserver. The API launches all runs this way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import httpx
from pydantic import SecretStr

from pulso_etl.access.permits import PARTITION_SET_SUFFIX, WHOLE_GRAPH
from pulso_etl.api.shapes import Progress
from pulso_etl.refreshing.runs import REFRESH_SENSOR, EndedRun, table_job
from pulso_etl.sync.errors import LauncherUnavailable, RequestRefused
from pulso_etl.sync.spec import TableSpec

if TYPE_CHECKING:
    from pulso_etl.refreshing.launch import Launch

TIMEOUT_SECONDS = 20.0
HEARTBEAT = timedelta(seconds=30)
"""How often each part of Dagster's daemon gives a sign of life."""
SILENCE = 2 * HEARTBEAT
"""A daemon without a heartbeat for this long has ended. Dagster itself notices it after half an hour."""
PART_SILENCE = 5 * SILENCE
"""A part of a living daemon that is silent for this long hangs."""
FAILED_SHOWN = 100
"""So many of the runs that failed of late are looked at, the newest."""


class RunStatus(StrEnum):
    """Dagster's states of a run."""

    QUEUED = "QUEUED"
    NOT_STARTED = "NOT_STARTED"
    MANAGED = "MANAGED"
    STARTING = "STARTING"
    STARTED = "STARTED"
    SUSPENDED = "SUSPENDED"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    CANCELING = "CANCELING"
    CANCELED = "CANCELED"


WAITING = {RunStatus.QUEUED, RunStatus.NOT_STARTED, RunStatus.MANAGED, RunStatus.STARTING}
UNDER_WAY = [
    RunStatus.QUEUED,
    RunStatus.NOT_STARTED,
    RunStatus.STARTING,
    RunStatus.STARTED,
    RunStatus.SUSPENDED,
    RunStatus.CANCELING,
]
"""The states of a run that waits or goes on."""

CODE_AWAY = "Dagster's code server does not answer, or has other definitions; it restarts by itself: try again in some seconds"
UNREACHABLE = {
    "DagsterUserCodeUnreachableError",
    "DagsterUserCodeUnreachableTimeoutError",
    "DagsterCodeLocationLoadError",
    "DagsterCodeLocationNotFoundError",
    "PipelineNotFoundError",
    "RepositoryLocationNotFound",
    # For an asset that Dagster itself listed: Dagster asks the code server, and reports every error of it as this one.
    "InvalidSubsetError",
}
"""Types and classes of Dagster's answers when the code server of our job is away."""


class DagsterUnavailable(LauncherUnavailable):
    """Dagster's webserver, or its code server, does not answer."""


class LaunchRefused(RequestRefused):
    """Dagster did not accept the run."""


@cache
def operation(name: str) -> str:
    """The text of an operation in the folder `operations`."""
    return (files("pulso_etl.api") / "operations" / f"{name}.graphql").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Run:
    """A run as Dagster describes it. Instants carry a zone."""

    run_id: str
    status: RunStatus
    job: str
    tags: Mapping[str, str]
    assets: Sequence[str] | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def progress(self) -> Progress:
        """The run's state in the vocabulary of this API."""
        if self.status in WAITING:
            return Progress.QUEUED
        ended = {
            RunStatus.SUCCESS: Progress.SUCCESS,
            RunStatus.FAILURE: Progress.FAILED,
            RunStatus.CANCELED: Progress.CANCELED,
        }
        return ended.get(self.status, Progress.RUNNING)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Run:
        """The run from an entry of the operation `runs`."""
        selection = found["assetSelection"]
        return cls(
            found["runId"],
            RunStatus(found["status"]),
            found["jobName"],
            {tag["key"]: tag["value"] for tag in found["tags"]},
            None if selection is None else ["/".join(key["path"]) for key in selection],
            datetime.fromtimestamp(found["creationTime"], UTC),
            _instant(found["startTime"]),
            _instant(found["endTime"]),
        )

    @property
    def ended(self) -> EndedRun | None:
        """The run, if it failed or was canceled."""
        if self.progress not in (Progress.FAILED, Progress.CANCELED) or self.ended_at is None:
            return None
        return EndedRun(self.run_id, self.tags, self.progress is Progress.CANCELED, self.started_at, self.ended_at)


@dataclass(frozen=True)
class Daemon:
    """The heartbeats of Dagster's daemon: the last one (with zone) of each part that the deployment needs, or None."""

    beats: Mapping[str, datetime | None]

    @classmethod
    def of(cls, statuses: Sequence[Mapping[str, Any]]) -> Daemon:
        """The daemon from Dagster's list of its parts."""
        return cls({one["daemonType"]: _instant(one["lastHeartbeatTime"]) for one in statuses if one["required"]})

    @property
    def last_beat(self) -> datetime | None:
        """The newest heartbeat of any part."""
        return max((beat for beat in self.beats.values() if beat is not None), default=None)

    def late(self, now: datetime) -> list[str]:
        """The parts that are silent: all of them, if no part has beaten within two heartbeats, since then the process has ended.
        A single part may be busy for longer than the others."""
        last = self.last_beat
        if self.beats and (last is None or now - last > SILENCE):
            return sorted(self.beats)
        return sorted(part for part, beat in self.beats.items() if beat is None or now - beat > PART_SILENCE)


@dataclass(frozen=True)
class Present:
    """What Dagster knows now: the runs under way, the runs that failed of late, both newest first, and the daemon."""

    under_way: Sequence[Run]
    failed: Sequence[Run]
    daemon: Daemon | None
    """None if Dagster does not answer."""


def _instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _refuse_unreachable(found: Mapping[str, Any]) -> None:
    """Raises DagsterUnavailable if the answer says that the code server is away."""
    if UNREACHABLE & {found["__typename"], found.get("className")}:
        raise DagsterUnavailable(CODE_AWAY)


def _listed(found: Mapping[str, Any]) -> list[Run]:
    """The runs of an answer. Raises DagsterUnavailable."""
    if found["__typename"] != "Runs":
        raise DagsterUnavailable(f"Dagster does not list its runs: {found.get('message')}")
    return [Run.of(entry) for entry in found["results"]]


class DagsterClient:
    """A client of the webserver. Every method raises DagsterUnavailable."""

    def __init__(self, url: str, token: SecretStr | None = None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """The webserver accepts this process by `token`. `transport` reaches a webserver inside this process."""
        self.url = url
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self._http = httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False, headers=headers, transport=transport)
        self._places: dict[str, dict[str, str]] = {}
        """By asset: its code location and its job, which a launch must name."""

    async def close(self) -> None:
        await self._http.aclose()

    async def post(self, body: Mapping[str, Any]) -> httpx.Response:
        """The webserver's unchanged answer to the body of a GraphQL request."""
        try:
            return await self._http.post(self.url, json=body)
        except httpx.HTTPError as error:
            raise DagsterUnavailable(f"Dagster's webserver does not answer: {error or type(error).__name__}") from error

    async def execute(self, name: str, **variables: Any) -> Any:
        """The data of the operation of that name."""
        answer = await self.post({"query": operation(name), "variables": variables})
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise DagsterUnavailable("Dagster's webserver refuses this process: set the same DAGSTER_GRAPHQL_TOKEN for both")
        try:
            found = answer.json()
        except ValueError:
            raise DagsterUnavailable(f"Dagster's webserver answers {answer.status_code}, and not JSON") from None
        if found.get("errors") or not found.get("data"):
            faults = "; ".join(str(error.get("message")) for error in found.get("errors", []))
            raise DagsterUnavailable(f"Dagster's webserver answers {answer.status_code}: {faults[:500] or 'nothing'}")
        return found["data"]

    async def runs(self, limit: int | None = None, **filters: Any) -> list[Run]:
        """The runs of a GraphQL RunsFilter (`runIds`, `tags`, `statuses`), newest first."""
        return _listed((await self.execute("runs", filter=filters, limit=limit))["runsOrError"])

    async def present(self, since: datetime, tags: Mapping[str, str]) -> Present:
        """What goes on now, and the runs with these tags that were made after `since` (with zone) and failed."""
        wanted = [{"key": key, "value": value} for key, value in tags.items()]
        found = await self.execute(
            "present",
            underWay={"statuses": UNDER_WAY},
            failed={"statuses": ["FAILURE", "CANCELED"], "createdAfter": since.timestamp(), "tags": wanted},
            limit=FAILED_SHOWN,
        )
        daemon = Daemon.of(found["instance"]["daemonHealth"]["allDaemonStatuses"])
        return Present(_listed(found["underWay"]), _listed(found["failed"]), daemon)

    async def runs_under_way(self) -> list[Run]:
        """The queued and running runs, newest first."""
        return await self.runs(statuses=UNDER_WAY)

    async def launch(self, launch: Launch) -> str:
        """Launches the run with the job of its table, else with Dagster's own job of all assets. Returns the run's id.

        Raises LaunchRefused if Dagster does not accept the run.
        """
        selection = {
            "assetSelection": [{"path": list(path)} for path in launch.assets],
            "assetCheckSelection": [
                {"assetKey": {"path": list(launch.spec.asset_path)}, "name": check.value} for check in launch.checks
            ],
        }
        params = {
            "selector": await self._place(launch.spec) | selection,
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in launch.tags.items()]},
        }
        found = (await self.execute("launch_run", params=params))["launchRun"]
        if found["__typename"] != "LaunchRunSuccess":
            # The asset may be in another code location now; the next launch looks again.
            self._places.clear()
            _refuse_unreachable(found)
            reasons = [found.get("message")] + [error["message"] for error in found.get("errors", [])]
            raise LaunchRefused(f"Dagster did not accept the run:  {next(filter(None, reasons), found['__typename'])[:500]}")
        return str(found["run"]["runId"])

    async def _place(self, spec: TableSpec) -> dict[str, str]:
        asset, job = spec.asset_name, table_job(spec)
        if asset not in self._places:
            found = (await self.execute("asset_location", assetKeys=[{"path": list(spec.asset_path)}]))["assetNodes"]
            if not found:
                raise DagsterUnavailable(
                    f"Dagster has no code for the asset {asset}: its code server does not answer, or is starting; if this goes on, "
                    "see Dagster's page Deployment for the error"
                )
            node = found[0]
            self._places[asset] = {
                "repositoryName": node["repository"]["name"],
                "repositoryLocationName": node["repository"]["location"]["name"],
                "jobName": job if job in node["jobNames"] else WHOLE_GRAPH,
            }
        return self._places[asset]

    async def automation(self, spec: TableSpec) -> bool | None:
        """Whether the sensor that refreshes the table and its neighbours is on. None if the code server does not tell."""
        place = await self._place(spec)
        selector = {
            "repositoryName": place["repositoryName"],
            "repositoryLocationName": place["repositoryLocationName"],
            "sensorName": spec.qualify(REFRESH_SENSOR),
        }
        found = (await self.execute("automation", sensor=selector))["sensorOrError"]
        return found["sensorState"]["status"] == "RUNNING" if found["__typename"] == "Sensor" else None

    async def backfill(self, backfill_id: str) -> tuple[str, list[str] | None] | None:
        """The job and the assets (as text) that a back-fill loads; None for an unknown back-fill."""
        found = (await self.execute("backfill", backfillId=backfill_id))["partitionBackfillOrError"]
        if found["__typename"] != "PartitionBackfill":
            return None
        selection = found["assetSelection"]
        job = (found["partitionSetName"] or WHOLE_GRAPH).removesuffix(PARTITION_SET_SUFFIX)
        return job, None if selection is None else ["/".join(key["path"]) for key in selection]

    async def ask_code(self, spec: TableSpec) -> None:
        """Asks the code server for the plan of a run of the table. This runs nothing."""
        place = await self._place(spec)
        selector = {
            "pipelineName": place["jobName"],
            "repositoryName": place["repositoryName"],
            "repositoryLocationName": place["repositoryLocationName"],
            "assetSelection": [{"path": list(spec.asset_path)}],
            "assetCheckSelection": [],
        }
        found = (await self.execute("code", selector=selector))["executionPlanOrError"]
        if found["__typename"] != "ExecutionPlan":
            self._places.clear()
            _refuse_unreachable(found)
            raise DagsterUnavailable(f"Dagster's code server makes no plan for {spec.asset_name}: {found['__typename']}")

    async def terminate(self, run_id: str) -> None:
        """Asks the run to end. A run that has ended meanwhile stays as it is."""
        await self.execute("terminate_run", runId=run_id)

    async def failure(self, run_id: str) -> str | None:
        """Why the run failed, as far as Dagster knows: the error of its step, of the queue, or of the run."""
        found = (await self.execute("run_failure", runId=run_id))["logsForRun"]
        reasons: dict[str, str] = {}
        for event in found.get("events", []):
            kind, error = event["__typename"], event.get("error") or {}
            described = (event.get("failureMetadata") or {}).get("description")
            reason = described or error.get("message") or event.get("message")
            if kind == "EngineEvent":
                reason = f"{event['message']} ({error['className']})" if error else None
            if reason:
                reasons.setdefault(kind, str(reason).strip()[:2000])
        return next(
            (reasons[kind] for kind in ("ExecutionStepFailureEvent", "EngineEvent", "RunFailureEvent") if kind in reasons), None
        )

    async def daemons(self) -> tuple[str, dict[str, bool]]:
        """Dagster's version, and for each required part of the daemon whether it beats."""
        found = await self.execute("daemons")
        daemon = Daemon.of(found["instance"]["daemonHealth"]["allDaemonStatuses"])
        late = daemon.late(datetime.now(UTC))
        return found["version"], {part: part not in late for part in daemon.beats}
