"""What errors of PostgreSQL mean: each is decided once, and only a server that is away is told as away."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg import errors as pg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pulso_etl.sync.errors import ContractError, DestinationError, DestinationUnavailable, LoadTimedOut, PulsoError
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.postgres.server_errors import CLASSES, CODES, keeps_out, meaning
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.spec import Column, ColumnType, Strategy
from pulso_etl_tests.sync.samples import D1, D2, D3, Loads, row, table, things

KNOWN = sorted(code for code in vars(pg)["_sqlcodes"] if len(code) == 5)
QUARANTINING: dict[str, Any] = {"on_reject": "quarantine", "maximum_quarantined_share": 1}
LONG = "".join(random.Random(7).choices(string.ascii_letters + string.digits, k=9000))
"""A text that can't be compressed to what an index takes."""
WIDE = tuple(Column(name=f"c{number}", type=ColumnType.INTEGER) for number in range(1100))


def wide(rows: list[dict[str, Any]], filled: str) -> pa.Table:
    """The rows with many more integer columns. They are null except in one row, which is too large for one page."""
    given = table(rows)
    values = pa.array([1 if one["name"] == filled else None for one in rows], pa.int64())
    for column in WIDE:
        given = given.append_column(column.name, values)
    return given


def test_every_class_of_errors_is_decided() -> None:
    assert {code[:2] for code in KNOWN} <= set(CLASSES)
    assert set(CODES) <= set(KNOWN)
    assert not [code for code, means in CODES.items() if means == CLASSES[code[:2]]]


def test_only_what_passes_by_itself_is_tried_again() -> None:
    retried = {code for code in KNOWN if meaning(pg.lookup(code)()).becomes.cause.retryable}
    named = {code for code in retried if code[:2] not in ("08", "40", "53", "57")}
    assert named == {"25006", "25P03", "25P04", "55006", "55P03", "58030", "72000"}
    assert {code for code in KNOWN if code[:2] in ("08", "40", "53", "57")} - retried == {"40002", "53400", "57P04"}
    assert {code[:2] for code in KNOWN if meaning(pg.lookup(code)()).by_row} == {"09", "22", "23", "40", "44", "54"}


@pytest.mark.parametrize(
    ("source", "spec", "reason"),
    [
        ([row(D1, "a"), row(D2, LONG), row(D3, "b")], {}, ("day, name", "key too long for an index")),
        (wide([row(D1, "a"), row(D2, "big"), row(D3, "b")], "big"), {"columns": WIDE}, ("the row", "refused by PostgreSQL")),
    ],
    ids=["long key", "big row"],
)
@pytest.mark.parametrize("strategy", Strategy)
def test_a_row_that_no_page_or_index_takes_is_a_contract_error_or_quarantined(
    loads: Loads, plan: PlanName, strategy: Strategy, source: Any, spec: dict[str, Any], reason: tuple[str, str]
) -> None:
    more = spec.get("columns", ())
    with pytest.raises(
        ContractError, match=r"things 2026-02-27..2026-03-01: PostgreSQL refuses .*row.*nothing was loaded"
    ) as caught:
        loads(source, things(*more, strategy=strategy), plan=plan)
    assert not caught.value.retryable
    assert LONG not in str(caught.value)
    result = loads(source, things(*more, strategy=strategy, **QUARANTINING), plan=plan)
    assert loads.rows("SELECT name FROM things ORDER BY 1") == [("a",), ("b",)]
    assert loads.rows("SELECT column_name, reason, partition FROM etl_quarantine") == [(*reason, D2)]
    assert (result.total.read, result.total.inserted, result.total.quarantined) == (3, 2, 1)


def test_a_long_key_that_the_server_compresses_is_loaded(loads: Loads, plan: PlanName) -> None:
    loads([row(D1, "a" * 20_000), row(D1, "b")], things(**QUARANTINING), plan=plan)
    assert loads.rows("SELECT length(name) FROM things ORDER BY 1") == [(1,), (20_000,)]


def test_a_quarantined_row_that_is_too_big_keeps_its_last_good_state(loads: Loads) -> None:
    spec = things(*WIDE, **QUARANTINING)
    rows = [row(D1, "a"), row(D1, "big"), row(D1, "b")]
    loads(wide(rows, ""), spec)
    result = loads(wide([rows[0], row(D1, "big", "9"), rows[2]], "big"), spec)
    assert loads.rows("SELECT name, money::float8 FROM things ORDER BY 1") == [("a", 1.5), ("b", 1.5), ("big", 1.5)]
    assert (result.total.unchanged, result.total.deleted, result.total.quarantined) == (2, 0, 1)


@pytest.mark.parametrize(
    ("provoke", "error", "message"),
    [
        ("SET default_transaction_read_only = on", DestinationUnavailable, "accepts no writes for now"),
        ("SET statement_timeout = 1", LoadTimedOut, "the statement was ended"),
    ],
    ids=["read-only", "statement_timeout"],
)
def test_what_the_server_s_settings_forbid_is_told_as_what_it_is(
    loads: Loads, provoke: str, error: type[PulsoError], message: str
) -> None:
    loads([row(D1, "a")], things())
    loads.conn.execute(provoke.encode())
    rows = [row(D1, f"n{number}") for number in range(5000)]
    with pytest.raises(error, match=f"things .*: PostgreSQL.*{message}") as caught:
        loads(rows, things())
    assert type(caught.value) is error


def test_a_trigger_that_refuses_a_row_is_no_outage(loads: Loads, schema: str) -> None:
    loads([row(D1, "a")], things())
    loads.conn.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no more'; END $$; "
        "CREATE TRIGGER refuse BEFORE INSERT ON things FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    with pytest.raises(ContractError, match="refuses a row: no more; nothing was loaded; look at the table's triggers"):
        loads([row(D1, "a"), row(D1, "b")], things())


@pytest.fixture
def roles(server_url: str) -> Iterator[str]:
    """The prefix of three roles. One may not log in, one has no connection left, and one needs its password.

    Each role has the password `secreto`, because some servers ask every role for its password.
    """
    prefix = f"r_{random.getrandbits(40):x}"
    with psycopg.connect(server_url, autocommit=True) as conn:
        for name, options in (("nologin", "NOLOGIN"), ("full", "LOGIN CONNECTION LIMIT 0"), ("secret", "LOGIN")):
            role = sql.Identifier(f"{prefix}_{name}")
            conn.execute(sql.SQL("CREATE ROLE {} {} PASSWORD 'secreto'").format(role, sql.SQL(options)))
        yield prefix
        for name in ("nologin", "full", "secret"):
            conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(f"{prefix}_{name}")))


def refused(url: str) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        Session(url, "test").open()
    return caught.value


@pytest.mark.parametrize(
    ("changes", "retried", "message"),
    [
        ({"dbname": "nada"}, False, "refuses the login: .*create the database, or name another in DATABASE_URL"),
        ({"user": "nadie"}, False, "refuses the login: .*check user and password of DATABASE_URL, the role's LOGIN"),
        ({"user": "{}_nologin"}, False, "refuses the login: .*check user and password of DATABASE_URL, the role's LOGIN"),
        ({"user": "{}_full"}, True, "has no connection left: .*raise max_connections or the role's limit"),
        ({"host": "127.0.0.1", "port": "1"}, True, "is away: .*refused"),
        ({"host": "no.such.host.invalid"}, True, "is away: "),
    ],
    ids=["database", "role", "nologin", "full", "refused", "host"],
)
def test_who_is_not_let_in_is_told_what_to_do_and_tries_again_only_where_that_helps(
    server_url: str, roles: str, changes: dict[str, str], retried: bool, message: str
) -> None:
    password = {"password": "secreto"} if "user" in changes else {}
    error = refused(make_conninfo(server_url, **password, **{name: value.format(roles) for name, value in changes.items()}))
    told = meaning(error).tell(error, "things 2026-02-27")
    assert told.retryable is retried
    assert keeps_out(error)
    assert re.search(f"things 2026-02-27: PostgreSQL {message}", str(told)), str(told)


@contextmanager
def asking_for_passwords(server_url: str, role: str) -> Iterator[None]:
    """In this block the server asks the role for its password."""
    with psycopg.connect(server_url, autocommit=True) as conn:
        if conn.pgconn.used_password:
            yield
            return
        (shown,) = conn.execute("SHOW hba_file").fetchone() or ("",)
        rules = Path(shown)
        if not rules.is_file():
            pytest.skip("the server's pg_hba.conf is on another machine")
        before = rules.read_text()
        try:
            rules.write_text(f"local all {role} scram-sha-256\nhost all {role} all scram-sha-256\n{before}")
            conn.execute("SELECT pg_reload_conf()")
            yield
        finally:
            rules.write_text(before)
            conn.execute("SELECT pg_reload_conf()")


def test_a_wrong_password_is_no_outage(server_url: str, roles: str) -> None:
    user = f"{roles}_secret"
    with asking_for_passwords(server_url, user):
        for given in ("equivocada", ""):
            error = refused(make_conninfo(server_url, user=user, password=given))
            assert (error.sqlstate, meaning(error).becomes) == ("28P01", DestinationError)
            assert "equivocada" not in str(meaning(error).tell(error))
        Session(make_conninfo(server_url, user=user, password="secreto"), "test").open().close()
