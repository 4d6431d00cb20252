"""A BigQuery emulator in a child process, for local runs and tests."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

from pulso_etl.local.child import Child, program

CHILD = program("""
import sys
import bqemulator.server
from pulso_etl.local.double import doubled, geography_when_asked_for, parse_once, translate_once
parse_once()
translate_once()
geography_when_asked_for()
bqemulator.server.create_app = doubled(bqemulator.server.create_app)
from bqemulator.cli import main
sys.argv[0] = "bqemulator"
""")


class BigQueryEmulator:
    """`bqemulator` with its data in memory, by default on free loopback ports. Its working files are beside the log."""

    def __init__(
        self,
        log_file: Path,
        project: str = "mibot-222814",
        *,
        host: str = "127.0.0.1",
        rest_port: int | None = None,
        row_weight: int = 1,
    ) -> None:
        """`row_weight`: each row counts as so many rows in the bytes that a query reads."""
        self.project = project
        self.row_weight = row_weight
        self.host = host
        self.rest_port = rest_port
        self.log_file = log_file.absolute()
        self.child: Child | None = None
        self.rest_url = ""
        self.grpc_address = ""

    def start(self, timeout: float = 120.0) -> BigQueryEmulator:
        """Starts the emulator and waits until it answers, at most `timeout` seconds. Raises RuntimeError."""
        rest, grpc = self.rest_port or _free_port(), _free_port()
        self.rest_url, self.grpc_address = f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc}"
        folder = self.log_file.parent / "emulator"
        folder.mkdir(parents=True, exist_ok=True)
        self.child = Child(
            "BigQuery emulator",
            CHILD,
            [
                *("start", "--rest-host", self.host, "--rest-port", str(rest), "--grpc-port", str(grpc)),
                *("--project", self.project, "--log-level", "warning"),
            ],
            self.log_file,
            env={
                # DuckDB keeps its extensions in the home folder, and uploads would go to one folder for all users of the machine.
                "HOME": str(folder),
                "BQEMU_UPLOAD_STAGING_DIR": str(folder / "uploads"),
                # Nothing here uses Avro, and the emulator would look for it in the network.
                "BQEMU_ENABLE_FORMAT_EXTENSIONS": "false",
                "PULSO_ROW_WEIGHT": str(self.row_weight),
            },
        )
        self.child.start()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.child.exit_code is None:
            try:
                with urllib.request.urlopen(f"{self.rest_url}/bigquery/v2/projects/{self.project}/datasets", timeout=2):  # noqa: S310 - our own server, on loopback
                    return self
            except urllib.error.HTTPError:
                return self
            except OSError:
                time.sleep(0.1)
        self.stop()
        tail = self.log_file.read_text(errors="replace")[-800:]
        raise RuntimeError(f"the BigQuery emulator did not start within {timeout:.0f} s; the end of its log: {tail}")

    def stop(self) -> None:
        """Ends the emulator. Its data are lost."""
        if self.child is not None:
            self.child.stop()
            self.child = None

    def client(self) -> bigquery.Client:
        """A client of this emulator."""
        return bigquery.Client(
            project=self.project,
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": self.rest_url},
        )

    def __enter__(self) -> BigQueryEmulator:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
