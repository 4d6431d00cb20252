"""A BigQuery emulator in a child process, for local runs and tests."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

CHILD = """
import ctypes, signal, sys
if sys.platform == "linux":  # end with the parent, even if that is killed
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
import duckdb_extensions
duckdb_extensions.import_extension("spatial")
from bqemulator.cli import main
sys.argv[0] = "bqemulator"
main()
"""


class BigQueryEmulator:
    """`bqemulator` with its data in memory, on free loopback ports."""

    def __init__(self, log_file: Path, project: str = "mibot-222814") -> None:
        self.project = project
        self.log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self.rest_url = ""
        self.grpc_address = ""

    def start(self, timeout: float = 30.0) -> BigQueryEmulator:
        """Starts the emulator and waits until it answers, `timeout` seconds at most. Raises RuntimeError."""
        rest, grpc = _free_port(), _free_port()
        self.rest_url, self.grpc_address = f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc}"
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", CHILD, "start", "--rest-port", str(rest), "--grpc-port", str(grpc)),
                    *("--project", self.project, "--log-level", "warning"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.rest_url}/bigquery/v2/projects/{self.project}/datasets", timeout=2):
                    return self
            except urllib.error.HTTPError:
                return self
            except OSError:
                time.sleep(0.1)
        self.stop()
        tail = self.log_file.read_text(errors="replace")[-800:]
        raise RuntimeError(f"the BigQuery emulator did not start within {timeout:.0f} s; the end of its log: {tail}")

    def stop(self) -> None:
        """Ends the emulator; its data are gone."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def client(self) -> bigquery.Client:
        """A client of this emulator."""
        return bigquery.Client(
            project=self.project,
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
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
