"""A login per tenant, made by the administrators' SQL on a real server: neither can be the other, whatever it runs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import errors as pg
from pydantic import SecretStr
from sqlalchemy import make_url

from pulso_etl.settings import Settings
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.tenancy.tenants import Deployed, deployed, grants, passwords, works_as
from pulso_etl_tests.sync.samples import D1, Loads, row, things

NAMES = ("acme", "globex")


@pytest.fixture
def parts(server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Deployed]]:
    mark, secret = uuid.uuid4().hex[:8], uuid.uuid4().hex
    lines = []
    for name in NAMES:
        url = make_url(server_url).set(username=f"{name}_{mark}", password=secret)
        monkeypatch.setenv(f"{name.upper()}_DATABASE_URL", url.render_as_string(hide_password=False))
        lines.append(f"  - {{name: {name}, database_schema: {name}_{mark}}}")
    file = tmp_path / "tenants.yaml"
    file.write_text("\n".join(["tenants:", *lines]))
    found = {part.tenant: part for part in deployed(Settings(database_url=SecretStr(server_url), tenants_file=file))}
    logins = ", ".join(works_as(part) for part in found.values())
    with psycopg.connect(server_url, autocommit=True) as admin:
        for statement in grants(list(found.values())):
            admin.execute(statement)
        for command in passwords(list(found.values())):
            admin.execute(f"ALTER ROLE {command.removeprefix(chr(92) + 'password ')} PASSWORD '{secret}'".encode())
        try:
            yield found
        finally:
            admin.execute(f"DROP OWNED BY {logins} CASCADE; DROP ROLE {logins}".encode())


def session(part: Deployed) -> Session:
    return Session(part.settings.database_url.get_secret_value(), "test")


def test_no_login_can_work_as_the_other_or_read_its_schema(parts: dict[str, Deployed]) -> None:
    for name in NAMES:
        with session(parts[name]).open() as conn:
            Loads(conn, parts[name].settings.database_schema)([row(D1, "a")], things())
    for name, other in (NAMES, NAMES[::-1]):
        with session(parts[name]).open() as conn:
            assert conn.execute("SELECT session_user, current_user").fetchone() == (works_as(parts[name]),) * 2
            theirs = parts[other].settings.database_schema
            for attack in (
                f"SET ROLE {works_as(parts[other])}",
                f"SET SESSION AUTHORIZATION {works_as(parts[other])}",
                f"SELECT set_config('role', '{works_as(parts[other])}', false)",
                f"SELECT * FROM {theirs}.things",
                f"CREATE TABLE {theirs}.mine (n int)",
                "CREATE SCHEMA mine",
                "CREATE FUNCTION public.hashtextextended(text, integer) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'",
            ):
                with pytest.raises(pg.InsufficientPrivilege):
                    conn.execute(attack.encode())


def test_a_trigger_of_one_s_own_runs_as_oneself_and_reaches_nobody(parts: dict[str, Deployed]) -> None:
    acme, globex = (parts[name].settings.database_schema for name in NAMES)
    with session(parts["globex"]).open() as conn:
        conn.execute(f"CREATE TABLE {globex}.things AS SELECT 1 AS n".encode())
    with session(parts["acme"]).open() as conn:
        loads = Loads(conn, acme)
        loads([row(D1, "a")], things())
        conn.execute(
            f"CREATE FUNCTION {acme}.steal() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN SET ROLE {works_as(parts['globex'])}; DELETE FROM {globex}.things; RETURN NEW; END $$; "
            f"CREATE TRIGGER steal BEFORE INSERT ON {acme}.things FOR EACH ROW EXECUTE FUNCTION {acme}.steal()".encode()
        )
        with pytest.raises(Exception, match="permission denied to set role"):
            loads([row(D1, "b")], things(), allow_shrink=True)
    with session(parts["globex"]).open() as conn:
        assert conn.execute(f"SELECT count(*) FROM {globex}.things".encode()).fetchone() == (1,)
