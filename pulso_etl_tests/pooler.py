"""A real pgbouncer in front of the session's PostgreSQL, on a port of 127.0.0.1."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url

from pulso_etl.local.postgres import ROOTS_USER

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed (Debian: apt install pgbouncer)")


@contextmanager
def pooler(server_url: str, mode: str, **settings: object) -> Iterator[str]:
    """The URL of the database through a pooler in that mode (`session`, `transaction`)."""
    assert PGBOUNCER is not None
    server = conninfo_to_dict(server_url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    host, user, name = server["host"], str(server.get("user") or "postgres"), server["dbname"]
    password = f" password={server['password']}" if server.get("password") else ""
    lines = [
        "[databases]",
        f"{name} = host={host} port={server.get('port') or 5432} dbname={name} user={user}{password}",
        "[pgbouncer]",
        *("listen_addr = 127.0.0.1", f"listen_port = {port}", "unix_socket_dir =", "auth_type = any", f"pool_mode = {mode}"),
        *(f"{key} = {value}" for key, value in settings.items()),
    ]
    # It refuses to run as root. The other user must have access to its files and to the socket of the server.
    home = Path(tempfile.mkdtemp())
    home.chmod(0o755)
    (home / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
    user_id = pwd.getpwnam(ROOTS_USER).pw_uid if os.geteuid() == 0 else None
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([PGBOUNCER, str(home / "pgbouncer.ini")], stdout=log, stderr=log, user=user_id)
    url = make_url(server_url).set(host="127.0.0.1", port=port, username=user, query={}).render_as_string(hide_password=False)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(url, connect_timeout=5).close()
                break
            except psycopg.OperationalError:
                assert process.poll() is None, (home / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(home)
