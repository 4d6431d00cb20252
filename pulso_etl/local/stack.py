"""The whole embedded default: servers, sample data, and the environment for the production code."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import dagster as dg
import psycopg
from google.api_core.exceptions import GoogleAPIError
from sqlalchemy import make_url

from pulso_etl import embedded
from pulso_etl.access.tokens import Caller, Role, make_token, token_of
from pulso_etl.local.child import Child, interruptible, uninterrupted
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.postgres import EmbeddedPostgres
from pulso_etl.local.sample_data import DEFAULT_ROWS, SampleData
from pulso_etl.settings import Settings, load_settings
from pulso_etl.sync.errors import LocalStackError
from pulso_etl.sync.postgres.sessions import Session

Server = TypeVar("Server")
DEVELOPER = Caller("dev", Role.ADMIN)
"""The user of the embedded default."""
DAGSTER_SCHEMA = "pulso_dagster"
"""The schema of Dagster's own tables in a database that DATABASE_URL names."""
PULSO = "from pulso_etl.cli.main import main\nmain()\n"
LOCATION = "pulso_etl.definitions"
WORKSPACE = """
load_from:
  - grpc_server:
      host: 127.0.0.1
      port: {port}
      location_name: {location}
"""


@dataclass
class LocalStack:
    """The running servers, with their files in `home`. If one of `children` ends, it is an error; `supervised` start again."""

    home: Path
    servers: ExitStack = field(default_factory=ExitStack)
    children: list[Child] = field(default_factory=list)
    supervised: list[Child] = field(default_factory=list)
    postgres: EmbeddedPostgres | None = None
    given: frozenset[str] = frozenset(os.environ)
    """The environment variables from before the stack; it has set all others."""
    announce: Callable[[], None] | None = None
    """Tells other processes that the servers are ready. None if this process does not run them for others."""

    def start(self, server: AbstractContextManager[Server]) -> Server:
        """Starts a server. It stops with the stack."""
        with uninterrupted():
            return self.servers.enter_context(server)

    def check(self) -> None:
        """Starts ended supervised servers again. Raises LocalStackError for any other ended server, with the end of its log."""
        for child in self.supervised:
            if child.exit_code is not None:
                child.revive()
        for child in self.children:
            if child.exit_code is not None:
                raise LocalStackError(f"the {child.name} has ended; the end of {child.log_file}:\n{child.log_tail()}")
        if self.postgres is not None and not self.postgres.alive():
            raise LocalStackError(f"PostgreSQL has ended; see {self.postgres.data_dir / 'log'}")

    def leave_settings(self) -> None:
        """Writes the settings of these servers for other processes, unless the servers of another process are there.

        The file stays: the next process that needs the servers starts them again. Settings that name a given PostgreSQL go with the
        stack, because they would load sample data into it.
        """
        if self.announce is None and embedded.holder(self.home) is not None:
            return
        file = embedded.settings_file(self.home)
        _write_environment(
            file, {embedded.VARIABLE: str(self.home), embedded.SETS: " ".join(sorted(os.environ.keys() - self.given))}
        )
        if self.postgres is None:
            self.servers.callback(file.unlink, missing_ok=True)
        if self.announce is not None:
            self.announce()


@dataclass(frozen=True)
class Sample:
    """What the sample data is made from. None: as it was the last time, so that a later start does not put older rows back."""

    revision: int | None = None
    rows_per_day: int | None = None
    days: int = 30

    def completed(self, file: Path) -> Sample:
        """This with what the file remembers of the last time, which it now remembers of this one."""
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        given = {name: value for name, value in asdict(self).items() if value is not None}
        whole = Sample(**{"revision": 0, "rows_per_day": DEFAULT_ROWS, **known, **given})
        file.write_text(json.dumps(asdict(whole)), encoding="utf-8")
        return whole


@contextmanager
def local_stack(
    home: Path,
    sample: Sample = Sample(),
    *,
    holds: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[LocalStack]:
    """PostgreSQL (unless DATABASE_URL names one), the emulator with sample data, and a Dagster home; all in `home`.

    Inside the block, the environment variables of this process and its children name them. At the end everything stops. SIGINT,
    SIGTERM and SIGHUP end the block by a KeyboardInterrupt. `holds` names the command that runs the servers for other processes;
    only one process does so at a time. `say` receives each step. Raises LocalStackError.
    """
    stack = LocalStack(home.absolute(), given=frozenset(os.environ))
    with interruptible(), _environment():
        try:
            with _explained():
                _prepare_home(stack.home)
                if holds is not None:
                    stack.announce = stack.start(embedded.holding(stack.home, holds))
                _start_postgres(stack, say)
                _seed(_start_emulator(stack, say), sample.completed(stack.home / "sample.json"), say)
            yield stack
        finally:
            with uninterrupted():
                stack.servers.close()


def _seed(emulator: BigQueryEmulator, sample: Sample, say: Callable[[str], None]) -> None:
    assert sample.revision is not None
    assert sample.rows_per_day is not None
    settings = load_settings()
    today = settings.zone.day(datetime.now(UTC))
    # Without this, Dagster's UI would show years of days for which there are no data.
    os.environ.setdefault("PARTITIONS_START", (today - timedelta(days=sample.days - 1)).isoformat())
    data = SampleData(settings.sources(), today, sample.days, sample.rows_per_day, revision=sample.revision, zone=settings.zone)
    revised = f", revision {sample.revision}" if sample.revision else ""
    say(f"BigQuery emulator: loading sample data of {sample.days} days, {sample.rows_per_day} dashboard rows a day{revised}")
    data.seed_into(emulator.client())


def keep(stack: LocalStack, say: Callable[[str], None], *, while_used: bool) -> None:
    """Leaves the stack's settings to other processes, and keeps its servers up until Ctrl-C, or `while_used`: until no process
    uses them.

    Raises LocalStackError if a server ends by itself.
    """
    with suppress(KeyboardInterrupt):
        stack.leave_settings()
        say(f"the servers are ready; their settings are in {embedded.settings_file(stack.home)}  (Ctrl-C stops them)")
        nobody = stack.start(embedded.unused(stack.home))
        while not (while_used and nobody()):
            stack.check()
            time.sleep(0.5)
    say("stopping everything")


def serve(stack: LocalStack, port: int, api_port: int, say: Callable[[str], None]) -> None:
    """Runs Dagster's code server, webserver and daemon and the HTTP API on loopback until Ctrl-C.

    Other processes get the stack's settings. If the code server ends, it is started again.

    Raises LocalStackError if another server ends by itself.
    """
    home = stack.home / "dagster"
    workspace = home / "workspace.yaml"
    say("Dagster and the HTTP API: starting")
    if stack.postgres is not None and not stack.postgres.joined:
        _fail_abandoned_runs()
    address, api_address = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{api_port}"
    os.environ["DAGSTER_UI_URL"], os.environ["DAGSTER_GRAPHQL_URL"] = address, f"{address}/graphql"
    os.environ["PAGE_URL"] = api_address
    os.environ["DAGSTER_GRAPHQL_TOKEN"] = secrets.token_urlsafe(32)
    secret = _token(stack.home / "token")
    os.environ["API_TOKENS"] = f"{os.environ.get('API_TOKENS', '')} {token_of(secret, DEVELOPER)}"
    code_port = _start_code_server(stack, home)
    workspace.write_text(WORKSPACE.format(port=code_port, location=LOCATION), encoding="utf-8")
    # Their folder has no `.env`. Dagster would load it over the stack's environment.
    for name, log, code, args in (
        ("Dagster webserver", "webserver.log", PULSO, ["webserver", "-h", "127.0.0.1", "-p", str(port), "-w", str(workspace)]),
        ("Dagster daemon", "daemon.log", PULSO, ["daemon", "-w", str(workspace)]),
        ("HTTP API", "api.log", PULSO, ["api", "--host", "127.0.0.1", "--port", str(api_port)]),
    ):
        stack.children.append(stack.start(Child(name, code, args, stack.home / log, cwd=home)))
    try:
        deadline = time.monotonic() + 120
        while not (answers(f"{address}/server_info") and answers(f"{api_address}/api/v1/etl/health?live=true")):
            stack.check()
            if time.monotonic() > deadline:
                raise LocalStackError(f"Dagster's webserver or the HTTP API does not answer; see the logs in {stack.home}")
            time.sleep(0.2)
        stack.leave_settings()
        say(f"Page and API: {api_address}/#token={secret}")
        say(f"Dagster: {address}/sign-in#{secret}  (Ctrl-C stops everything; logs in {stack.home})")
        while True:
            stack.check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        say("stopping everything")


def _token(file: Path) -> str:
    """The developer's token. The file keeps it for the next start, and only this user can read it."""
    if not file.exists():
        _write_private(file, make_token(DEVELOPER.name, DEVELOPER.role)[0])
    return file.read_text(encoding="utf-8").strip()


def _write_private(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(text)


def _start_code_server(stack: LocalStack, home: Path) -> int:
    """Starts one process with the definitions, for webserver and daemon. Returns its port once it answers.

    Otherwise each would load the definitions in a process of its own, and Dagster does not start a killed one again.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    args = ["code-server", "--host", "127.0.0.1", "--port", str(port), "--module-name", LOCATION]
    child = stack.start(Child("Dagster code server", PULSO, args, stack.home / "code-server.log", cwd=home))
    deadline = time.monotonic() + 120
    while not listens(port):
        if child.exit_code is not None or time.monotonic() > deadline:
            raise LocalStackError(f"Dagster's code server did not start; the end of {child.log_file}:\n{child.log_tail()}")
        time.sleep(0.2)
    stack.supervised.append(child)
    return port


def listens(port: int) -> bool:
    """Whether something listens on the loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def check_port(port: int, option: str) -> None:
    """Raises LocalStackError if no process can listen on the loopback port. The error names the command line's option."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise LocalStackError(f"port {port} can't be used ({error.strerror}); choose another with {option}") from error


def configuration(name: str) -> str:
    """The text of `dagster.yaml` or `workspace.yaml`. A wheel has them beside this module, a checkout at its top."""
    packaged = files(__package__) / name
    source = packaged if packaged.is_file() else Path(__file__).parents[2] / name
    return source.read_text(encoding="utf-8")


def _prepare_home(home: Path) -> None:
    if re.search(r"[\s'\"$`\\]", str(home)):
        raise LocalStackError(f"the folder must not have a space or a quote in its path: {str(home)!r}")
    dagster_home = home / "dagster"
    dagster_home.mkdir(parents=True, exist_ok=True)
    _close(home)
    for name in ("dagster.yaml", "workspace.yaml"):
        (dagster_home / name).write_text(configuration(name), encoding="utf-8")
    os.environ["DAGSTER_HOME"] = str(dagster_home)


def _close(home: Path) -> None:
    """Only this user can read tokens, data and logs. Root's PostgreSQL runs as another user and passes through the folder."""
    home.chmod(0o711 if os.geteuid() == 0 else 0o700)


def _start_postgres(stack: LocalStack, say: Callable[[str], None]) -> None:
    if os.environ.get("DATABASE_URL"):
        say("PostgreSQL: the one that DATABASE_URL names")
        if not os.environ.get("DAGSTER_POSTGRES_URL"):
            os.environ["DAGSTER_POSTGRES_URL"] = _dagster_url(load_settings().database_url.get_secret_value())
    else:
        say("PostgreSQL: starting")
        stack.postgres = stack.start(EmbeddedPostgres(stack.home / "postgres"))
        # Under root the package opens the folder.
        _close(stack.home)
        os.environ["DATABASE_URL"] = stack.postgres.create_database("pulso")
        os.environ["DAGSTER_POSTGRES_URL"] = stack.postgres.create_database("dagster")


def _start_emulator(stack: LocalStack, say: Callable[[str], None]) -> BigQueryEmulator:
    # Requests to these local servers must not go through a proxy of the machine.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1,localhost")))
    say("BigQuery emulator: starting")
    emulator = stack.start(BigQueryEmulator(stack.home / "emulator.log"))
    assert emulator.child is not None
    stack.children.append(emulator.child)
    os.environ["BIGQUERY_EMULATOR_HOST"] = emulator.rest_url
    return emulator


def _dagster_url(database_url: str) -> str:
    with Session(database_url, "local").open() as conn:
        conn.execute(f"CREATE SCHEMA IF NOT EXISTS {DAGSTER_SCHEMA}")
    url = make_url(database_url).set(drivername="postgresql").update_query_dict({"options": f"-csearch_path={DAGSTER_SCHEMA}"})
    return url.render_as_string(hide_password=False)


def _fail_abandoned_runs() -> None:
    """Runs of a killed process would hold their places in the queue for ever."""
    unfinished = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    with dg.DagsterInstance.get() as instance:
        for run in instance.get_runs(dg.RunsFilter(statuses=unfinished)):
            instance.report_run_failed(run, "The process that ran this was killed.")


def answers(url: str) -> bool:
    """Whether the address answers with success within seconds."""
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own server, on loopback
            return True
    except OSError:
        return False


def _write_environment(file: Path, more: Mapping[str, str]) -> None:
    """Writes the settings, and `more`, as lines `NAME='value'`, for a shell and python-dotenv alike. Only this user can read the
    file."""
    names = [*(name.upper() for name in Settings.model_fields), "NO_PROXY", "no_proxy"]
    # Only URLs can contain quotes and dollars, and a URL may percent-encode them.
    encoded = str.maketrans({"'": "%27", "$": "%24"})
    values = {name: os.environ[name] for name in names if os.environ.get(name)} | dict(more)
    _write_private(file, "".join(f"{name}='{value.translate(encoded)}'\n" for name, value in values.items()))


@contextmanager
def _environment() -> Iterator[None]:
    """Restores the environment at the end."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, psycopg.Error, GoogleAPIError) as error:
        raise LocalStackError(f"the embedded default did not start: {error}") from error
