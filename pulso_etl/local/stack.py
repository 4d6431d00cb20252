"""The whole embedded default: servers, sample data, and the environment for the production code."""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import dagster as dg
import psycopg
from google.api_core.exceptions import GoogleAPIError
from sqlalchemy import make_url

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
DAEMON = "from dagster._daemon.cli import main; main()"
PULSO = "from pulso_etl.cli.main import main; main()"
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


@contextmanager
def local_stack(
    home: Path,
    *,
    revision: int = 0,
    days: int = 30,
    rows_per_day: int = DEFAULT_ROWS,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[LocalStack]:
    """PostgreSQL (unless DATABASE_URL names one), the emulator with sample data, and a Dagster home; all in `home`.

    Inside the block, the environment variables of this process and its children name them. At the end everything stops. SIGINT,
    SIGTERM and SIGHUP end the block by a KeyboardInterrupt. `say` receives each step. Raises LocalStackError.
    """
    stack = LocalStack(home.absolute())
    with interruptible(), _environment():
        try:
            with _explained():
                _prepare_home(stack.home)
                _start_postgres(stack, say)
                emulator = _start_emulator(stack, say)
                settings = load_settings()
                data = SampleData(
                    settings.sources(),
                    settings.zone.day(datetime.now(UTC)),
                    days,
                    rows_per_day,
                    revision=revision,
                    zone=settings.zone,
                )
                say(f"BigQuery emulator: loading sample data of {days} days, {rows_per_day} dashboard rows a day")
                data.seed_into(emulator.client())
            yield stack
        finally:
            with uninterrupted():
                stack.servers.close()


def serve(stack: LocalStack, port: int, api_port: int, say: Callable[[str], None]) -> None:
    """Runs Dagster's code server, webserver and daemon and the HTTP API on loopback until Ctrl-C. Meanwhile the file `env` holds
    the stack's environment. If the code server ends, it is started again.

    Raises LocalStackError if another server ends by itself.
    """
    home = stack.home / "dagster"
    workspace = home / "workspace.yaml"
    say("Dagster and the HTTP API: starting")
    if stack.postgres is not None and not stack.postgres.joined:
        _fail_abandoned_runs()
    address, api_address = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{api_port}"
    os.environ["DAGSTER_UI_URL"], os.environ["DAGSTER_GRAPHQL_URL"] = address, f"{address}/graphql"
    os.environ["DAGSTER_GRAPHQL_TOKEN"] = secrets.token_urlsafe(32)
    secret = _token(stack.home / "token")
    os.environ["API_TOKENS"] = f"{os.environ.get('API_TOKENS', '')} {token_of(secret, DEVELOPER)}"
    code_port = _start_code_server(stack, home)
    workspace.write_text(WORKSPACE.format(port=code_port, location=LOCATION), encoding="utf-8")
    # Their folder has no `.env`. Dagster would load it over the stack's environment.
    for name, log, code, args in (
        ("Dagster webserver", "webserver.log", PULSO, ["webserver", "-h", "127.0.0.1", "-p", str(port), "-w", str(workspace)]),
        ("Dagster daemon", "daemon.log", DAEMON, ["run", "-w", str(workspace)]),
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
        env_file = stack.home / "env"
        stack.servers.callback(env_file.unlink, missing_ok=True)
        _write_environment(env_file)
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


def _write_environment(file: Path) -> None:
    """Writes the settings as lines `NAME='value'`, for a shell and python-dotenv alike. Only this user can read the file."""
    names = [*(name.upper() for name in Settings.model_fields), "NO_PROXY", "no_proxy"]
    # Only URLs can contain quotes and dollars, and a URL may percent-encode them.
    encoded = str.maketrans({"'": "%27", "$": "%24"})
    lines = [f"{name}='{os.environ[name].translate(encoded)}'\n" for name in names if os.environ.get(name)]
    _write_private(file, "".join(lines))


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
