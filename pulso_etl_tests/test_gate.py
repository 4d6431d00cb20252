"""The gate of the tests keeps its promise: after it is shut, no client has a connection."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path

from pulso_etl_tests.gate import Gate, Way


def test_a_client_that_was_about_to_be_connected_is_cut_when_the_gate_shuts(tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(path)
        server.listen(0)
        first.connect(path)
        # The queue of the server is full, so the gate waits for its own connection.
        with Gate(path) as gate, socket.create_connection(("127.0.0.1", gate.port)) as client:
            time.sleep(0.2)
            gate.turn(Way.REFUSED)
            answering = [server.accept()[0] for _ in range(2)]
            client.settimeout(5)
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
            for one in answering:
                one.close()
