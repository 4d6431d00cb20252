"""Dagster's code server with runs that start warm: `pulso-etl code-server`.

Dagster's own code server starts a new Python for each run, and a small run spends most of its time on imports. Here the process
imports Dagster, the clients and the definitions once, and then divides: a fork serves as the fork server, and each run is a fork of
that. All share the memory of the imports. Everything else is Dagster's: how it watches, terminates and reports a run's process,
the logs, and the reload of the code, which starts a new code server and a new fork server.

Two parts of Dagster do not survive an outage or a kill, and are repaired here. First, the thread that looks for dead runs ends for
good when Dagster's storage is away for a while, and it holds the lock of all runs while it waits for the storage. Second, the
termination of a run whose process was killed blocks for ever under the same lock, and the code server then answers nobody.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import resource_tracker, util
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import dagster._grpc.server as dagster_server
from dagster import DagsterInstance
from dagster._cli.api import grpc_command
from dagster._core.instance.ref import InstanceRef
from dagster._grpc.server import DagsterApiServer
from dagster._utils import get_run_crash_explanation

from pulso_etl.instance import lines
from pulso_etl.instance.preload import MODULE_VARIABLE, preload

log = logging.getLogger(__name__)
TRIAL_SECONDS = 120.0
"""Limit of the first fork. If the fork server had to be started anew, it waits for the imports."""
FORK_SERVER = "fork server"
"""The name of its process, and of those of its runs, as `ps -o comm` shows it."""


def serve(host: str, port: int, module: str) -> None:
    """Serves the definitions of the module to Dagster's daemon and webserver, until a signal ends the process."""
    os.environ[MODULE_VARIABLE] = module
    # `kill -USR1` writes to standard error what each thread is doing.
    faulthandler.register(signal.SIGUSR1)
    lines.serve("INFO")
    preload(module)
    divide()
    dagster_server.DagsterApiServer = WarmApiServer  # type: ignore[misc]
    grpc_command.main(["--host", host, "--port", str(port), "--module-name", module, "--location-name", module])


class Termination(Event):
    """The event that terminates a run. Setting it takes no lock and waits for no process, dead or alive.

    An event of multiprocessing waits until each waiter has woken, and a killed waiter never wakes. This event is a pipe that nobody
    reads. Once the pipe holds data, the event is set for every process that has an end of the pipe.
    """

    def __init__(self, *, ctx: Any) -> None:
        self._reader, self._writer = ctx.Pipe(duplex=False)

    def set(self) -> None:
        if not self.is_set():
            self._writer.send_bytes(b"terminate")

    def is_set(self) -> bool:
        return bool(self._reader.poll())

    def wait(self, timeout: float | None = None) -> bool:
        return bool(self._reader.poll(timeout))


class Spawned(SpawnContext):
    """The way in which Dagster starts a run: each in a new Python."""

    def Event(self) -> Event:
        return Termination(ctx=self)


class Forked(ForkServerContext):
    """The way in which a run starts warm: as a fork of the fork server."""

    def Event(self) -> Event:
        return Termination(ctx=self)


def divide() -> None:
    """Starts the fork server as a fork of this process, which must have no thread yet. If that fails, `WarmApiServer` tries again.

    multiprocessing would start it as a new Python, with imports and memory of its own.
    """
    resource_tracker.ensure_running()
    Forked().set_forkserver_preload(["pulso_etl.instance.warm"])
    theirs, util.spawnv_passfds = util.spawnv_passfds, _fork  # type: ignore[assignment]
    try:
        ensure_running()
    except OSError:
        log.warning("the fork server can't be started", exc_info=True)
    finally:
        util.spawnv_passfds = theirs


def _fork(_: bytes, args: Sequence[str], keep: Sequence[int]) -> int:
    """In place of multiprocessing's start of a Python: a fork runs the program of `args`, with only the files that it is given."""
    pid = os.fork()
    if pid:
        return pid
    ended = 1
    try:
        Path("/proc/self/comm").write_text(FORK_SERVER)
        for number in map(int, os.listdir("/proc/self/fd")):
            if number not in (0, 1, 2, *keep):
                with suppress(OSError):
                    os.close(number)
        exec(args[-1], {})  # noqa: S102 - multiprocessing's own program of a fork server
    except SystemExit:
        ended = 0
    except BaseException:
        log.exception("the fork server has ended")
    os._exit(ended)


class WarmApiServer(DagsterApiServer):
    """Dagster's code server with a fork server for its runs. Until a trial has worked, runs start in Dagster's own way."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # `StartRun` uses it to create a run's process, queue and event.
        self._mp_ctx = Spawned()
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def _warm_up(self) -> None:
        """Forks once. From then on runs are forks of the fork server."""
        context = Forked()
        trial = context.Process(target=int, name="trial of the fork server")
        try:
            trial.start()
            trial.join(TRIAL_SECONDS)
            fault = None if trial.exitcode == 0 else f"the trial ended with {trial.exitcode}"
        except (OSError, EOFError) as error:
            fault = str(error) or type(error).__name__
        if fault is None:
            self._mp_ctx = context  # type: ignore[assignment]
            self._logger.info("runs start warm: the fork server is ready")
        else:
            self._logger.warning("the fork server does not work, so each run starts a Python of its own: %s", fault)

    def _check_for_orphaned_runs(self) -> None:
        """Reports to Dagster each run whose process has ended without a report. Dagster's clean-up thread calls this every second.

        While Dagster's storage cannot be reached, the run stays known and the next look tries again. No lock is held meanwhile.
        """
        with self._execution_lock:
            ended = [(run_id, *known) for run_id, known in self._executions.items() if not known[0].is_alive()]
        for run_id, process, instance_ref in ended:
            try:
                _tell_end(run_id, process, instance_ref)
            except Exception as error:
                self._logger.warning("run %s has ended; its end cannot be reported yet: %s", run_id, type(error).__name__)
                continue
            with self._execution_lock:
                self._clear_run(run_id)
        with self._execution_lock:
            if self._shutdown_once_executions_finish_event.is_set() and not self._executions:
                self._server_termination_event.set()


def _tell_end(run_id: str, process: BaseProcess, instance_ref: InstanceRef) -> None:
    """Marks the run as failed unless Dagster knows its end. Raises the storage's errors."""
    with DagsterInstance.from_ref(instance_ref) as instance:
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            why = get_run_crash_explanation(f"Run execution process for {run_id}", process.exitcode or 0)
            instance.report_engine_event(why, run, cls=WarmApiServer)
            instance.report_run_failed(run)
