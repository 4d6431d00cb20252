"""A live soak, `python -m chaos.soak`: a whole deployment is used in every way at once, while one part after the other fails.

Each process is killed in turn and started again, as a service manager does it; PostgreSQL, which holds Dagster's storage too, and
BigQuery refuse, keep silent and are slow in turn. Then it is quiet, and what is left is held against the source and what was told.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import dagster as dg
import psycopg
import typer
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from google.cloud import bigquery

from benchmarks import page
from chaos.share import end_on_sigterm, say
from pulso_etl.access.tokens import Role, make_token
from pulso_etl.instance.code_server import FORK_SERVER
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.postgres import EmbeddedPostgres
from pulso_etl.local.sample_data import SampleData, base_of, load_table
from pulso_etl.settings import Settings
from pulso_etl.sync.errors import Cause
from pulso_etl.sync.spec import fill
from pulso_etl.sync.zone import DEFAULT
from pulso_etl.tables import TABLES
from pulso_etl_tests.gate import Gate, Way

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "faults.md"
DAYS, ROWS = 10, 60
MODULE = "chaos.short"
QUIET_SECONDS = 420
YOUNG = timedelta(seconds=100)
HIT_SECONDS = 40
"""How long a fault waits for something to hit."""
AFTER = timedelta(seconds=90)
"""How long after a fault an attempt that it ended or delayed may still report it."""
UNFINISHED_BACKFILLS = (BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING)
LAUNCH = """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message } } }"""
BACKFILL = """mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename ... on LaunchBackfillSuccess { backfillId } } }"""
WORKSPACE = "load_from:\n  - grpc_server:\n      host: 127.0.0.1\n      port: {port}\n      location_name: {module}\n"


@dataclass
class Service:
    """A process that is started again whenever it ends."""

    name: str
    command: list[str]
    log: Path
    env: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def watch(self) -> None:
        """Starts the process if it does not run."""
        if self.process is None or self.process.poll() is not None:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self.command,
                    env=self.env,
                    cwd=self.log.parent,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self.starts += 1

    def kill(self) -> None:
        """Ends the process at once. Processes that it has started go on."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def end(self) -> None:
        """Ends the process, and all processes that it has started."""
        if self.process is not None:
            for how, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, how)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(seconds)


class Inbox:
    """Receives alerts, each with its time of arrival."""

    def __init__(self) -> None:
        self.messages: list[tuple[datetime, str, str]] = []
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                inbox.messages.append((datetime.now(UTC), body["title"], body["message"]))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"json://127.0.0.1:{self.server.server_port}/hook"


@dataclass
class Asked:
    """The requests of the soak, by way in: how many, how many were refused, and the promised runs."""

    asked: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    runs: dict[str, str] = field(default_factory=dict)
    backfills: list[str] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    """Answers that hold a text of gRPC."""


class Deployment:
    """All processes, in `home`, with a gate before PostgreSQL and BigQuery."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        self.home = home
        self.server = stack.enter_context(EmbeddedPostgres(home / "postgres"))
        self.emulator = stack.enter_context(BigQueryEmulator(home / "emulator.log", rest_port=_free_port()))
        self.url = self.server.create_database("pulso")
        self.dagster_url = self.server.create_database("dagster")
        self.postgres = stack.enter_context(Gate.before_postgres(self.url))
        self.bigquery = stack.enter_context(Gate.before_http(self.emulator.rest_url))
        self.inbox = Inbox()
        self.code, self.web, self.api = (_free_port() for _ in range(3))
        dagster_home = home / "dagster"
        dagster_home.mkdir()
        (dagster_home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text(encoding="utf-8"), encoding="utf-8")
        (dagster_home / "workspace.yaml").write_text(WORKSPACE.format(port=self.code, module=MODULE), encoding="utf-8")
        self.env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NO_PROXY": "127.0.0.1,localhost",
            "DATABASE_URL": self.postgres.postgres_url,
            "DAGSTER_POSTGRES_URL": self.postgres.postgres_url.replace("/pulso?", "/dagster?"),
            "DAGSTER_HOME": str(dagster_home),
            "BIGQUERY_EMULATOR_HOST": self.bigquery.http_url,
            "BIGQUERY_DATASET": "SOAK",
            "TIMEZONE": DEFAULT.name,
            "SENSOR_INTERVAL_SECONDS": "5",
            "RETRY_WAIT_SECONDS": "10",
            "RETRY_WAIT_MAXIMUM_SECONDS": "30",
            "RETRY_LIMIT": "50",
            "INITIAL_WINDOW_DAYS": str(DAYS),
            "ALERT_URLS": self.inbox.url,
            "ALERT_GATHER_SECONDS": "10",
            "DAGSTER_UI_URL": f"http://127.0.0.1:{self.web}",
            "DAGSTER_GRAPHQL_URL": f"http://127.0.0.1:{self.web}/graphql",
            "DAGSTER_GRAPHQL_TOKEN": secrets.token_urlsafe(32),
            "API_LAUNCH_LIMIT": "10000/second",
        }
        for name in ("TENANTS_FILE", "DATABASE_SCHEMA", "BIGQUERY_EMULATOR_STORAGE", "API_TOKENS"):
            self.env.pop(name, None)
        python, bins = sys.executable, Path(sys.executable).parent
        at = ["--host", "127.0.0.1", "--port"]
        self.token, token = make_token("soak", Role.ADMIN)
        commands = {
            "code server": [python, "-m", "pulso_etl", "code-server", *at, str(self.code), "-m", MODULE],
            "webserver": [python, "-m", "pulso_etl", "webserver", "-h", at[1], "-p", str(self.web), "-w", "workspace.yaml"],
            "daemon": [f"{bins}/dagster-daemon", "run", "-w", "workspace.yaml"],
            "API": [python, "-m", "pulso_etl", "api", *at, str(self.api)],
        }
        self.services = {
            name: Service(
                name,
                command,
                dagster_home / f"{name.replace(' ', '-')}.log",
                self.env | ({"API_TOKENS": str(token)} if name in ("webserver", "API") else {}),
            )
            for name, command in commands.items()
        }
        self.today = DEFAULT.day(datetime.now(UTC))
        self.names = {
            name: full.replace(".BI_USA.", ".SOAK.")
            for name, full in Settings(database_url="postgresql://none/none").sources().items()
        }
        self.source: bigquery.Client = self.emulator.client()
        self.revision = 0
        self.changed_at = datetime.now(UTC)
        SampleData(self.names, self.today, DAYS, ROWS).seed_into(self.source)
        for service in self.services.values():
            stack.callback(service.end)
        self.supervisor = threading.Thread(target=self._supervise, daemon=True)
        self.over = threading.Event()
        stack.callback(self.over.set)
        self.supervisor.start()

    def _supervise(self) -> None:
        while not self.over.wait(1):
            for service in list(self.services.values()):
                # Only the code server loads the definitions: the others wait for it at their first start.
                if service.starts or service.name == "code server" or _listens(self.code):
                    service.watch()

    def dismiss(self, name: str) -> None:
        """Ends the process for good. Processes that it has started go on."""
        self.services.pop(name).kill()

    def kill_emulator(self) -> bool:
        """Ends the emulator at once. Its data are lost."""
        assert self.emulator.child is not None
        pid = self.emulator.child.pid
        assert pid is not None
        os.killpg(pid, signal.SIGKILL)
        return True

    def revive_emulator(self) -> None:
        """Starts it again on its port. The gate stays closed until it has its data again."""
        self.bigquery.turn(Way.REFUSED)
        self.emulator.stop()
        self.emulator.start()
        SampleData(self.names, self.today, DAYS, ROWS, revision=self.revision).seed_into(self.source)
        self.bigquery.turn(Way.OPEN)

    def change_source(self) -> None:
        """Makes late corrections, removes rows and adds new ones."""
        self.revision += 1
        found = SampleData(self.names, self.today, DAYS, ROWS, revision=self.revision).tables()
        for name in self.names:
            load_table(self.source, base_of(self.names, name), found[name])
        self.changed_at = datetime.now(UTC)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """An answer of the API: its status and JSON. Raises OSError."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.api}{path}",
            data,
            {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=40) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def workers(self) -> list[int]:
        """The processes of runs: forks of the code server's fork server, or children of the code server until that is ready."""
        server = self.services["code server"].process
        if server is None:
            return []
        parents, commands, names = {}, {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                pid, _, rest = (folder / "stat").read_text().partition(" ")
                parents[int(pid)] = int(rest.rpartition(")")[2].split()[1])
                commands[int(pid)] = (folder / "cmdline").read_bytes()
                names[int(pid)] = (folder / "comm").read_text().strip()
        forking = {pid for pid, parent in parents.items() if parent == server.pid and names.get(pid) == FORK_SERVER}
        return [
            pid for pid, parent in parents.items() if parent in forking or (parent == server.pid and b"spawn_main" in commands[pid])
        ]

    def is_refreshed(self) -> bool:
        """Whether each table's watermark says that its days were read after the last change of the source."""
        query = "SELECT count(*) FROM etl_watermarks WHERE last_extracted_at > %s"
        with suppress(psycopg.OperationalError), psycopg.connect(self.url) as conn:
            return conn.execute(query, (self.changed_at,)).fetchone() == (len(TABLES),)
        return False

    def ready(self) -> bool:
        """Whether a refresh could run now."""
        with suppress(OSError, ValueError):
            return self.ask("GET", "/api/v1/etl/health")[0] == 200
        return False

    def instance(self) -> dg.DagsterInstance:
        """Dagster's instance, without the gate."""
        os.environ["DAGSTER_POSTGRES_URL"] = self.dagster_url
        return dg.DagsterInstance.from_config(self.env["DAGSTER_HOME"])


class Callers:
    """The ways in that people and programs have, each in a thread: HTTP, GraphQL, back-fills, the command line."""

    def __init__(self, deployment: Deployment, seed: int) -> None:
        self.deployment = deployment
        self.asked = Asked()
        self.stopped = threading.Event()
        self.cli: list[subprocess.Popen[bytes]] = []
        ways: dict[str, tuple[Callable[[Random], None], float]] = {
            "HTTP": (self.http, 40),
            "GraphQL": (self.graphql, 45),
            "back-fill": (self.backfill, 100),
            "command line": (self.command_line, 60),
        }
        self.threads = [
            threading.Thread(target=self._call, args=(name, way, seconds, Random(f"{seed}/{name}")), daemon=True)
            for name, (way, seconds) in ways.items()
        ]

    def _call(self, name: str, way: Callable[[Random], None], seconds: float, random: Random) -> None:
        while not self.stopped.wait(seconds * random.uniform(0.6, 1.4)):
            self.asked.asked[name] += 1
            try:
                way(random)
            except (OSError, ValueError, KeyError, TypeError):
                self.asked.refused[name] += 1

    def http(self, random: Random) -> None:
        status, told = self.deployment.ask("POST", f"/api/v1/etl/refresh/table/{random.choice(list(TABLES))}?force=true")
        self._look_for_grpc(told)
        if status != 202:
            raise ValueError(told)
        for table in told["runs"].values():
            if table["run_id"]:
                self.asked.runs[table["run_id"]] = "HTTP"

    def graphql(self, random: Random) -> None:
        today, table = self.deployment.today, random.choice(list(TABLES))
        first = today - timedelta(days=random.randrange(DAYS))
        tags = {"dagster/asset_partition_range_start": str(first), "dagster/asset_partition_range_end": str(today)}
        params = {
            "selector": {
                "repositoryName": "__repository__",
                "repositoryLocationName": MODULE,
                "jobName": f"refresh_{table}",
                "assetSelection": [{"path": [table]}],
            },
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        _, told = self.deployment.ask("POST", "/graphql", {"query": LAUNCH, "variables": {"params": params}})
        self.asked.runs[told["data"]["launchRun"]["run"]["runId"]] = "GraphQL"

    def backfill(self, random: Random) -> None:
        days = sorted(random.sample(range(DAYS), 3))
        table = random.choice(list(TABLES))
        params = {
            "assetSelection": [{"path": [table]}],
            "partitionNames": [str(self.deployment.today - timedelta(days=day)) for day in days],
        }
        _, told = self.deployment.ask("POST", "/graphql", {"query": BACKFILL, "variables": {"params": params}})
        self.asked.backfills.append(told["data"]["launchPartitionBackfill"]["backfillId"])

    def command_line(self, random: Random) -> None:
        table = random.choice(list(TABLES))
        with (self.deployment.home / "cli.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pulso_etl", "refresh", table, "--force"],
                env=self.deployment.env,
                cwd=self.deployment.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.cli.append(process)
        with suppress(subprocess.TimeoutExpired):
            if process.wait(240):
                self.asked.refused["command line"] += 1

    def _look_for_grpc(self, told: Any) -> None:
        if "grpc" in json.dumps(told).lower():
            self.asked.raw.append(json.dumps(told)[:300])

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(260)


class Part(StrEnum):
    """The part that a fault takes away, in the words of the causes of failed attempts."""

    SOURCE = "source"
    DESTINATION = "destination"
    PROCESS = "process"
    SESSION = "session"
    NONE = "none"


@dataclass(frozen=True)
class Fault:
    """A fault for a number of seconds. `begin` says whether it hit something; it is tried until it does."""

    name: str
    part: Part
    begin: Callable[[], bool]
    seconds: float = 0.0
    end: Callable[[], None] = lambda: None


def faults(deployment: Deployment, callers: Callers, random: Random) -> Iterator[Fault]:
    """Every fault in turn, again and again."""

    def turned(gate: Gate, part: Part, way: Way, seconds: float) -> Fault:
        def shut() -> bool:
            met = gate.met
            gate.turn(way)
            # The soak waits for rare clients, but not for ever. The fault goes on meanwhile.
            deadline = time.monotonic() + HIT_SECONDS
            while gate.met == met and time.monotonic() < deadline:
                time.sleep(0.2)
            return gate.met > met

        what = "PostgreSQL" if part is Part.DESTINATION else "BigQuery"
        return Fault(f"{what} {way}{' for 5 minutes' if seconds >= 300 else ''}", part, shut, seconds, lambda: gate.turn(Way.OPEN))

    def end_session() -> bool:
        with psycopg.connect(deployment.url, autocommit=True) as conn:
            ended = conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ '^pulso-etl [0-9a-f]{8}-' LIMIT 1"
            )
            return ended.rowcount > 0

    def kill_command_line() -> bool:
        alive = [process for process in callers.cli if process.poll() is None]
        for process in alive:
            os.killpg(process.pid, signal.SIGKILL)
        return bool(alive)

    def kill_worker() -> bool:
        workers = deployment.workers()
        if workers:
            os.kill(random.choice(workers), signal.SIGKILL)
        return bool(workers)

    def stop() -> bool:
        deployment.server.stop()
        return True

    def start() -> None:
        deployment.server.start()

    def killed(service: Service) -> Callable[[], bool]:
        def kill() -> bool:
            alive = service.process is not None and service.process.poll() is None
            service.kill()
            return alive

        return kill

    database, source = (deployment.postgres, Part.DESTINATION), (deployment.bigquery, Part.SOURCE)
    while True:
        yield turned(*database, Way.REFUSED, 20)
        for service in list(deployment.services.values()):
            part = Part.PROCESS if service.name == "code server" else Part.NONE
            yield Fault(f"{service.name} killed", part, killed(service))
        yield Fault("a run's worker killed", Part.PROCESS, kill_worker)
        yield turned(*source, Way.REFUSED, 40)
        yield turned(*database, Way.SILENT, 25)
        yield turned(*database, Way.REFUSED, 300)
        yield Fault("emulator killed", Part.SOURCE, deployment.kill_emulator, 10, deployment.revive_emulator)
        yield Fault("a load's session ended", Part.SESSION, end_session)
        yield Fault("command line killed", Part.PROCESS, kill_command_line)
        yield turned(*source, Way.SILENT, 30)
        yield turned(*database, Way.SLOW, 25)
        yield turned(*source, Way.SLOW, 30)
        yield Fault("PostgreSQL restarted", Part.DESTINATION, stop, random.uniform(2, 8), start)


@dataclass
class Struck:
    """A fault that was active from one instant to another, and whether it hit anybody.

    A gate counts whom it cuts off, but not whom the machine refuses a connection: that is known by the attempts that say so.
    """

    fault: Fault
    began: datetime
    ended: datetime
    met: bool


@dataclass
class Findings:
    """The results of the soak. `broken` are the lines that report faults."""

    asked: Asked
    struck: list[Struck] = field(default_factory=list)
    missed: Counter[str] = field(default_factory=Counter)
    """Faults that found nothing to hit. See `met_nobody` for faults that were active and hit nobody."""
    broken: list[str] = field(default_factory=list)
    rows: int = 0
    runs: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    never_began: int = 0
    backfills: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    quiet_seconds: float = 0.0

    @property
    def hits(self) -> Counter[str]:
        return Counter(one.fault.name for one in self.struck if one.met)

    @property
    def met_nobody(self) -> Counter[str]:
        return self.missed + Counter(one.fault.name for one in self.struck if not one.met)


def judge(deployment: Deployment, found: Findings) -> None:
    """Waits until every table is refreshed and nothing runs. Then compares everything with the source and the messages."""
    began = time.monotonic()
    with deployment.instance() as instance:
        while time.monotonic() - began < QUIET_SECONDS:
            if not deployment.is_refreshed() or open_outages(deployment.inbox):
                time.sleep(2)
                continue
            # Runs that sensors and schedule still launch are young. All other runs must end.
            since = datetime.now(UTC) - YOUNG
            old = instance.get_run_records(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES, created_before=since), limit=1)
            if not old and not [one for one in instance.get_backfills() if one.status in UNFINISHED_BACKFILLS]:
                break
            time.sleep(2)
        else:
            found.broken.append(f"something goes on {QUIET_SECONDS} s after the last fault")
        # From here on nothing is launched, and running work ends.
        deployment.dismiss("daemon")
        going = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
        while instance.get_runs(going, limit=1) and time.monotonic() - began < 2 * QUIET_SECONDS:
            time.sleep(1)
        found.quiet_seconds = time.monotonic() - began
        for backfill in instance.get_backfills():
            found.backfills[backfill.status.value] += 1
        runs = {run.run_id: run for run in instance.get_runs()}
        records = {record.dagster_run.run_id: record for record in instance.get_run_records()}
    for run in runs.values():
        found.runs[run.status.value] += 1
    # Dagster itself launches a run again if the run failed but its step did not.
    unbegun = {run_id for run_id, record in records.items() if record.start_time is None}
    failed = {run_id for run_id, run in runs.items() if run.status is dg.DagsterRunStatus.FAILURE}
    dropped = sorted(failed & unbegun - {run.parent_run_id for run in runs.values()})
    found.never_began = len(dropped)
    found.broken += [f"run {run_id} failed without having begun, and was not launched again" for run_id in dropped]
    found.broken += [
        f"run {run_id}, promised by {way}, is not known" for run_id, way in found.asked.runs.items() if run_id not in runs
    ]
    found.broken += [f"back-fill {name} is {status}" for name, status in _failed_backfills(found)]
    found.broken += [f"an answer holds a text of gRPC: {text}" for text in found.asked.raw]
    _judge_rows(deployment, found, {run_id: run.status.value for run_id, run in runs.items()})
    _judge_alerts(deployment.inbox, found)


def _failed_backfills(found: Findings) -> list[tuple[str, str]]:
    wrong = {name: count for name, count in found.backfills.items() if name not in ("COMPLETED_SUCCESS", "COMPLETED")}
    return [(str(count), name) for name, count in wrong.items()]


def _judge_rows(deployment: Deployment, found: Findings, runs: dict[str, str]) -> None:
    """Compares every row of every table, and every attempt in the history, with the source and Dagster's runs."""
    with psycopg.connect(deployment.url, autocommit=True) as conn:
        conn.execute("SET TIME ZONE 'UTC'")
        for table, spec in TABLES.items():
            columns, keys = (*spec.primary_key, *spec.compared_columns), len(spec.primary_key)
            there = conn.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
            held, source = {row[:keys]: row[keys:] for row in there}, wanted(deployment, table)
            found.rows += len(source)
            if held != source:
                different = sum(held.get(key) != source.get(key) for key in held.keys() | source.keys())
                found.broken.append(f"{table}: {different} of {len(source)} rows are not as the source has them")
        history = "SELECT extraction_id, status, error_message, error_cause, started_at, finished_at FROM etl_extractions"
        last: dict[str, str] = {}
        for run_id, status, error, cause, *span in conn.execute(history + " ORDER BY id").fetchall():
            found.attempts[status] += 1
            last[run_id] = status
            if status == "failed":
                _judge_cause(found, run_id, Cause.of(cause), error or "", *span)
        # A run that succeeded has loaded. A run that loaded may have been ended before it could report it.
        wrong = [run_id for run_id, status in runs.items() if status == "SUCCESS" and last.get(run_id) == "failed"]
        found.broken += [f"run {run_id} is told as a success, its last attempt as a failure" for run_id in wrong]
        for what, query in LEFT.items():
            if (left := conn.execute(query).fetchone()) != (0,):
                found.broken.append(f"{left} {what} are left")


EXPLAINS = {
    Cause.SOURCE_UNAVAILABLE: {Part.SOURCE},
    Cause.DESTINATION_UNAVAILABLE: {Part.DESTINATION, Part.SESSION},
    Cause.LOCKED: {Part.DESTINATION, Part.SESSION},
    # The attempt could not say why. The process that found it dead did.
    **dict.fromkeys((Cause.ABANDONED, Cause.TIMEOUT), set(Part) - {Part.NONE}),
}


def _judge_cause(found: Findings, run_id: str, cause: Cause, error: str, began: datetime, ended: datetime) -> None:
    """Checks that a failed attempt says what was wrong, and that a fault explains it."""
    found.causes[str(cause)] += 1
    wanted = EXPLAINS.get(cause, set())
    on = [one for one in found.struck if one.began <= ended and began <= one.ended + AFTER]
    blamed = [one for one in on if one.fault.part in wanted]
    for one in blamed:
        one.met = True
    if not error or not blamed:
        names = ", ".join(one.fault.name for one in on) or "nothing"
        found.broken.append(
            f"an attempt of run {run_id}, {began:%H:%M:%S} to {ended:%H:%M:%S}, failed by {cause} "
            f"({' '.join(error.split())[:160]}); at that time: {names}"
        )


LEFT = {
    "attempts that are marked as running": "SELECT count(*) FROM etl_running",
    "sessions of loads": "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^pulso-etl [0-9a-f]{8}-'",
    "advisory locks of ours": "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = "
    "(SELECT oid FROM pg_database WHERE datname = current_database())",
}


def wanted(deployment: Deployment, table: str) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """The rows that the table should hold. It asks the emulator directly, without the gate and without code of a load."""
    spec = TABLES[table]
    config = bigquery.QueryJobConfig(
        query_parameters=[
            bigquery.ScalarQueryParameter("start", "DATE", deployment.today - timedelta(days=DAYS - 1)),
            bigquery.ScalarQueryParameter("end", "DATE", deployment.today),
        ]
    )
    query = fill(spec.source.query, deployment.names, spec.timezone)
    rows = [dict(row) for row in deployment.source.query(query, job_config=config).result()]
    if not spec.partition_in_key:
        # The newest whole snapshot of each month.
        newest: dict[Any, Any] = {}
        for row in rows:
            newest[row["periodo"]] = max(row[spec.partition_column], newest.get(row["periodo"], row[spec.partition_column]))
        rows = [row for row in rows if row[spec.partition_column] == newest[row["periodo"]]]
    return {tuple(row[k] for k in spec.primary_key): tuple(row[c] for c in spec.compared_columns) for row in rows}


OUTAGES = {
    "BigQuery no responde": "BigQuery volvió a responder",
    "PostgreSQL no está disponible": "PostgreSQL volvió a estar disponible",
}


def open_outages(inbox: Inbox) -> set[str]:
    """The outages with a message, but without a message of their end."""
    last = {begun: ended for _, title, _ in inbox.messages for begun, ended in told(title)}
    return {begun for begun, ended in last.items() if not ended}


def told(title: str) -> Iterator[tuple[str, bool]]:
    """The outage of the message, and whether the message is about its end."""
    for begun, ended in OUTAGES.items():
        if f"Recuperado: {ended}" in title:
            yield begun, True
        elif begun in title:
            yield begun, False


def _judge_alerts(inbox: Inbox, found: Findings) -> None:
    """Checks that messages of outages and of their ends alternate, and that no outage stays open."""
    open_: set[str] = set()
    for at, title, _ in inbox.messages:
        found.messages[title.removeprefix("[Pulso] ").partition(" (")[0]] += 1
        for outage, ended in told(title):
            if ended and outage not in open_:
                found.broken.append(f"{at:%H:%M:%S}: {title}, and nothing was told of its beginning")
            if not ended and outage in open_:
                found.broken.append(f"{at:%H:%M:%S}: {title} was told a second time")
            open_ = open_ - {outage} if ended else open_ | {outage}
    found.broken += [f"the end of {one} was never told" for one in open_]


def soak(
    minutes: Annotated[float, typer.Option(min=0.5, help="How long faults follow each other.")] = 20,
    seed: Annotated[int, typer.Option(help="Chooses tables, days and pauses.")] = 1,
    calm: Annotated[float, typer.Option(min=1, help="Seconds between two faults.")] = 25,
    keep: Annotated[Path | None, typer.Option(help="Folder for the logs, which stay there.")] = None,
    write: Annotated[bool, typer.Option("--write", help=f"Write the figures into {PAGE.name} as well.")] = False,
) -> None:
    """Uses a deployment in every way while its parts fail in turn. Ends with code 1 if anything was lost or reported wrong."""
    with ExitStack() as stack:
        home = keep or Path(stack.enter_context(TemporaryDirectory(prefix="pulso-soak-", ignore_cleanup_errors=True)))
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o755)
        deployment = Deployment(home, stack)
        wait_for(deployment.ready, 300, "the deployment did not start")
        callers = Callers(deployment, seed)
        for thread in callers.threads:
            thread.start()
        found = Findings(callers.asked)
        began = time.monotonic()
        for fault in faults(deployment, callers, Random(seed)):
            time.sleep(calm)
            if time.monotonic() - began > 60 * minutes:
                break
            promised = len(callers.asked.runs)
            say(f"{fault.name} for {fault.seconds:.0f} s; {promised} runs promised, {len(deployment.inbox.messages)} messages")
            struck, hit = datetime.now(UTC), fault.begin()
            deadline = time.monotonic() + HIT_SECONDS
            while not hit and not fault.seconds and time.monotonic() < deadline:
                time.sleep(0.2)
                hit = fault.begin()
            time.sleep(fault.seconds)
            fault.end()
            # A lasting fault was active, whether it hit anybody or not.
            if hit or fault.seconds:
                found.struck.append(Struck(fault, struck, datetime.now(UTC), hit))
            else:
                found.missed[fault.name] += 1
                say(f"{fault.name}: met nobody")
            deployment.change_source()
        callers.stop()
        wait_for(deployment.ready, 180, "the deployment did not come back")
        say("quiet")
        judge(deployment, found)
        text = report(found, seed, time.monotonic() - began)
        print(text)
        for at, title, _ in deployment.inbox.messages:
            say(f"{at:%H:%M:%S} {title}")
        if write:
            page.write(PAGE, "soak", text)
        for line in found.broken:
            print(f"BROKEN: {line}", flush=True)
        if found.broken:
            raise typer.Exit(1)


def report(found: Findings, seed: int, seconds: float) -> str:
    """The figures, as Markdown."""

    def counted(counts: Counter[str]) -> str:
        return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"

    rows = [
        ("faults that hit", counted(found.hits)),
        ("faults that met nobody", counted(found.met_nobody)),
        ("launches asked for", counted(found.asked.asked)),
        ("of these refused at the time, with a reason", counted(found.asked.refused)),
        ("runs, by their end", counted(found.runs)),
        ("runs that failed without having begun, and were not launched again", str(found.never_began)),
        ("back-fills, by their end", counted(found.backfills)),
        ("attempts in the history", counted(found.attempts)),
        ("of these failed, by what they say", counted(found.causes)),
        ("rows compared at the end", f"{found.rows:,}"),
        ("messages", counted(found.messages)),
        ("seconds until all was quiet", f"{found.quiet_seconds:.0f}"),
    ]
    wrong = f"{len(found.broken)} findings" if found.broken else "Nothing was lost, and nothing told wrong or twice"
    return "\n".join(
        (
            f"{datetime.now(UTC):%Y-%m-%d}, seed {seed}: {found.hits.total()} faults in {seconds / 60:.0f} minutes. {wrong}.",
            "",
            "| what | figures |",
            "| --- | --- |",
            *(f"| {name} | {text} |" for name, text in rows),
        )
    )


def wait_for(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(otherwise)
        time.sleep(1)


def _listens(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    end_on_sigterm()
    typer.run(soak)
