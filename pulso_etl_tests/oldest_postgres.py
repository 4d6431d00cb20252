"""The oldest PostgreSQL that is promised, out of Debian's package: `python -m pulso_etl_tests.oldest_postgres COMMAND…` runs a
command with DATABASE_URL set to such a server.

As Debian has it: the locale C.UTF-8, passwords by scram-sha-256 over TCP, and a login that is no superuser.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

BIN = Path("/usr/lib/postgresql/15/bin")
INSTALLED = (BIN / "initdb").exists()
needs_oldest_postgres = pytest.mark.skipif(
    not INSTALLED, reason="PostgreSQL 15 is not installed (Debian: apt install postgresql-15)"
)


@contextmanager
def oldest_postgres() -> Iterator[str]:
    """The URL of a new database `pulso` on a new server. Its login may create databases and roles, and is no superuser."""
    home = Path(tempfile.mkdtemp())
    # PostgreSQL refuses to run as root. Debian's package has a user for it.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        os.chown(home, pwd.getpwnam(user).pw_uid, -1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    password, login_password = secrets.token_hex(8), secrets.token_hex(8)

    def run(*command: str, **more: object) -> None:
        clean = {"PATH": os.environ["PATH"]}
        ended = subprocess.run(command, cwd=home, user=user, env=clean, capture_output=True, text=True, timeout=60, **more)  # type: ignore[call-overload]
        assert ended.returncode == 0, ended.stderr + ended.stdout

    data, ctl = str(home / "data"), str(BIN / "pg_ctl")
    (home / "password").write_text(password)
    (home / "password").chmod(0o644)
    how = ("--locale=C.UTF-8", "--auth=scram-sha-256", "--username=postgres", f"--pwfile={home / 'password'}", "--no-sync")
    run(str(BIN / "initdb"), "-D", data, *how)
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={home} -c fsync=off"
    # Its output goes to a file, because the server would keep a pipe open.
    run(ctl, "-D", data, "-w", "-l", str(home / "log"), "-o", options, "start")
    try:
        address = f"127.0.0.1:{port}"
        with psycopg.connect(f"postgresql://postgres:{password}@{address}/postgres", autocommit=True) as admin:
            admin.execute(f"CREATE ROLE pulso LOGIN CREATEDB CREATEROLE PASSWORD '{login_password}'")
            admin.execute("GRANT pg_monitor TO pulso")
            admin.execute("CREATE DATABASE pulso OWNER pulso")
        yield f"postgresql://pulso:{login_password}@{address}/pulso"
    finally:
        run(ctl, "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(home)


def main(command: Sequence[str]) -> int:
    """Runs the command on such a server. Returns its exit code."""
    if not INSTALLED:
        print("PostgreSQL 15 is not installed (Debian: apt install postgresql-15)", file=sys.stderr)
        return 1
    with oldest_postgres() as url:
        return subprocess.run(command, env=os.environ | {"DATABASE_URL": url}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
