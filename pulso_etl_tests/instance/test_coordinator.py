"""The run queue: age counts in its order, and a back-fill whose code is away for a while goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import dagster as dg
import pytest
from dagster._core.definitions.selector import JobSubsetSelector
from dagster._core.errors import DagsterLaunchFailedError
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.launcher.base import LaunchRunContext, RunLauncher
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.storage.dagster_run import RunOpConcurrency
from dagster._core.storage.tags import PRIORITY_TAG, RETRY_STRATEGY_TAG, SENSOR_NAME_TAG, WILL_RETRY_TAG
from dagster._core.test_utils import create_run_for_test
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._daemon.auto_run_reexecution import auto_run_reexecution as retries
from dagster._daemon.backfill import execute_backfill_iteration
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from dagster._serdes import ConfigurableClass
from dagster._time import get_current_timestamp
from sqlalchemy.exc import OperationalError

from pulso_etl.access.permits import fault_of_run
from pulso_etl.instance import coordinator
from pulso_etl.instance.coordinator import HEAD_START_SECONDS, queue_tags
from pulso_etl.sync.tags import QUEUED_TAG
from pulso_etl_tests.dagster_stack import CHECKOUT

NOW = 1_800_000_000


def order(*runs: tuple[str, int, int]) -> list[str]:
    """The order in which Dagster's daemon takes runs. Each run has a name, a priority and the second of its request."""
    queued = [dg.DagsterRun(job_name=name, tags=queue_tags({PRIORITY_TAG: str(priority)}, NOW + at)) for name, priority, at in runs]
    with QueuedRunCoordinatorDaemon(interval_seconds=1) as daemon:
        return [run.job_name for run in daemon._priority_sort(queued)]


def test_a_greater_priority_is_a_head_start_and_no_more() -> None:
    assert order(("small", 0, 0), ("dashboard", 10, 10 * HEAD_START_SECONDS - 1)) == ["dashboard", "small"]
    assert order(("small", 0, 0), ("dashboard", 10, 10 * HEAD_START_SECONDS + 1)) == ["small", "dashboard"]
    assert order(("second", 0, 1), ("first", 0, 0)) == ["first", "second"]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance on SQLite with the queue of `dagster.yaml`."""
    text = (CHECKOUT / "dagster.yaml").read_text(encoding="utf-8")
    queue = text[text.index("run_coordinator:") : text.index("concurrency:")]
    (tmp_path / "dagster.yaml").write_text(f"{queue}telemetry:\n  enabled: false\n", encoding="utf-8")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


@dg.asset(partitions_def=dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-02-01"))
def loaded() -> None:
    """An asset to back-fill."""


defs = dg.Definitions(assets=[loaded])


def location(module: str) -> InProcessWorkspaceLoadTarget:
    origin = InProcessCodeLocationOrigin(
        LoadableTargetOrigin(executable_path=None, module_name=module, attribute=None), location_name="here"
    )
    return InProcessWorkspaceLoadTarget(origin)


def look(instance: dg.DagsterInstance, module: str) -> BulkActionStatus:
    """Lets the daemon look at the back-fill once, with that module as code location. Returns the back-fill's state."""
    with WorkspaceProcessContext(instance, location(module)) as context:
        list(execute_backfill_iteration(context, logging.getLogger("test")))
    found = instance.get_backfill("outage")
    assert found is not None
    return found.status


def add_backfill(instance: dg.DagsterInstance, tags: dict[str, str], config: dict[str, object] | None = None) -> None:
    """Asks for a back-fill with these tags, and this run configuration."""
    assert instance.run_coordinator is not None
    with WorkspaceProcessContext(instance, location(__name__)) as context:
        graph = context.create_request_context().asset_graph
        backfill = PartitionBackfill.from_asset_partitions(
            "outage", graph, ["2026-01-05"], [loaded.key], get_current_timestamp(), tags, instance, False, None, None, config
        )
        instance.add_backfill(backfill)


def test_a_backfill_waits_for_code_that_can_not_be_reached(instance: dg.DagsterInstance) -> None:
    add_backfill(instance, {})
    for _ in range(7):
        assert look(instance, "pulso_etl_tests.nothing_of_that_name") is BulkActionStatus.REQUESTED
    assert look(instance, __name__) is BulkActionStatus.REQUESTED
    (run,) = instance.get_runs()
    assert run.status is dg.DagsterRunStatus.QUEUED
    assert int(run.tags[PRIORITY_TAG]) == -int(run.tags[QUEUED_TAG])


def test_a_run_that_waits_for_its_table_takes_no_place_of_another_table_s(tmp_path: Path) -> None:
    text = (CHECKOUT / "dagster.yaml").read_text(encoding="utf-8")
    queue = text[text.index("run_coordinator:") : text.index("run_monitoring:")]
    (tmp_path / "dagster.yaml").write_text(f"{queue}telemetry:\n  enabled: false\n", encoding="utf-8")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance, QueuedRunCoordinatorDaemon(interval_seconds=1) as daemon:
        with WorkspaceProcessContext(instance, location(__name__)) as context:
            here = context.create_request_context().get_code_location("here")
            origin = here.get_job(JobSubsetSelector("here", "__repository__", "__ASSET_JOB", None)).get_remote_origin()

        def add(pool: str, status: dg.DagsterRunStatus, at: int) -> str:
            tags = {"pulso_etl/source": "bigquery", PRIORITY_TAG: str(-at)}
            pools = RunOpConcurrency(root_key_counts={pool: 1}, has_unconstrained_root_nodes=False, all_pools={pool})
            run = dg.DagsterRun("load", status=status, tags=tags, remote_job_origin=origin, run_op_concurrency=pools)
            return instance.add_run(run).run_id

        for pool in ("writer_large", "writer_small", "writer_other"):
            instance.event_log_storage.initialize_concurrency_limit_to_default(pool)
        add("writer_large", dg.DagsterRunStatus.STARTED, 0)
        waits = [add("writer_large", dg.DagsterRunStatus.QUEUED, at) for at in (1, 2)]
        small = add("writer_small", dg.DagsterRunStatus.QUEUED, 3)
        found = daemon._get_runs_to_dequeue(instance, instance.get_concurrency_config(), None)
        assert [run.run_id for run in found] == [small]
        # The limit of the tag holds as before.
        add("writer_other", dg.DagsterRunStatus.STARTED, 0)
        assert daemon._get_runs_to_dequeue(instance, instance.get_concurrency_config(), None) == []
        assert set(waits) <= {run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]))}


class FlakyLauncher(RunLauncher, ConfigurableClass):
    """Raises the errors one after the other, as launchers do. Then it launches."""

    errors: ClassVar[list[Exception]] = []
    launched: ClassVar[list[str]] = []

    @property
    def inst_data(self) -> None:
        return None

    @classmethod
    def config_type(cls) -> dict[str, object]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: object, config_value: object) -> FlakyLauncher:
        return cls()

    def launch_run(self, context: LaunchRunContext) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.launched.append(context.dagster_run.run_id)

    def terminate(self, run_id: str) -> bool:
        return False


def submit(instance: dg.DagsterInstance, tags: dict[str, str]) -> dg.DagsterRun:
    """A run of the asset, in the queue."""
    with WorkspaceProcessContext(instance, location(__name__)) as context:
        request = context.create_request_context()
        job = request.get_code_location("here").get_job(JobSubsetSelector("here", "__repository__", "__ASSET_JOB", None))
        run = create_run_for_test(
            instance, "__ASSET_JOB", remote_job_origin=job.get_remote_origin(), job_code_origin=job.get_python_origin(), tags=tags
        )
        return instance.submit_run(run.run_id, request)


def test_a_run_that_could_not_be_launched_stays_in_the_queue_whatever_kept_it(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [
        DagsterLaunchFailedError("Tried to start a run on a server after telling it to shut down"),
        OperationalError("SELECT 1", {}, Exception("connection refused")),
        ConnectionError("no broker"),
    ]
    monkeypatch.setattr(FlakyLauncher, "errors", list(errors))
    monkeypatch.setattr(FlakyLauncher, "launched", [])
    launcher = FlakyLauncher()
    launcher.register_instance(instance)
    monkeypatch.setattr(instance, "_run_launcher", launcher)
    run = submit(instance, {})
    with WorkspaceProcessContext(instance, location(__name__)) as context, QueuedRunCoordinatorDaemon(interval_seconds=1) as daemon:
        for minute in range(len(errors)):
            list(daemon.run_iteration(context, fixed_iteration_time=NOW + 60.0 * minute))
            found = instance.get_run_by_id(run.run_id)
            assert found is not None
            assert found.status is dg.DagsterRunStatus.QUEUED
            assert FlakyLauncher.launched == []
        list(daemon.run_iteration(context, fixed_iteration_time=NOW + 3600.0))
    assert FlakyLauncher.launched == [run.run_id]


def test_the_launch_of_a_failed_run_waits_for_its_code_server(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "RETRY_WAIT_SECONDS", 0.05)
    asked = {"team": "data"}
    failed = submit(instance, {**asked, WILL_RETRY_TAG: "true", RETRY_STRATEGY_TAG: "ALL_STEPS"})
    instance.report_run_failed(failed, "its worker is gone")
    with WorkspaceProcessContext(instance, location("pulso_etl_tests.nothing_of_that_name")) as context:
        records = instance.get_run_records(dg.RunsFilter(run_ids=[failed.run_id]))
        retry = retries.consume_new_runs_for_automatic_reexecution(context, records, logging.getLogger("test"))
        thread = threading.Thread(target=lambda: list(retry), daemon=True)
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()
        monkeypatch.setattr(context, "_workspace_load_target", location(__name__))
        context.refresh_workspace()
        thread.join(30)
        assert not thread.is_alive()
    (again,) = [run for run in instance.get_runs() if run.parent_run_id == failed.run_id]
    assert again.status is dg.DagsterRunStatus.QUEUED
    assert again.tags.items() >= asked.items()


@pytest.mark.parametrize(
    ("tags", "config"),
    [
        ({"dagster-k8s/config": '{"container_config": {"image": "elsewhere", "security_context": {"privileged": true}}}'}, None),
        ({"dagster-celery/queue": "elsewhere"}, None),
        ({"pulso_etl/capture": "true"}, None),
        ({}, {"resources": {"io_manager": {"config": {"base_dir": {"env": "DATABASE_URL"}}}}}),
    ],
    ids=str,
)
def test_a_run_that_is_code_does_not_enter_the_queue(
    instance: dg.DagsterInstance, tags: dict[str, str], config: dict[str, object] | None
) -> None:
    add_backfill(instance, tags, config)
    look(instance, __name__)
    assert {run.status for run in instance.get_runs()} <= {dg.DagsterRunStatus.FAILURE}


def test_what_a_sensor_says_and_what_a_run_repeats_is_let_through() -> None:
    captured = {"pulso_etl/capture": "true"}
    assert fault_of_run(captured, {}, {}) is not None
    assert fault_of_run(captured | {SENSOR_NAME_TAG: "refresh_sensor"}, {}, {}) is None
    assert fault_of_run(captured, {}, captured) is None
    assert fault_of_run({"dagster-k8s/config": "{}"}, {}, {"dagster-k8s/config": "{ }"}) is not None
    assert fault_of_run({"team": "data"}, {"loggers": {}, "resources": {}}, {}) is None
