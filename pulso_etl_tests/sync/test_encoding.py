"""Databases in encodings that can't hold every character."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
import pyarrow as pa
import pytest

from pulso_etl.sync.errors import Cause, ContractError, DestinationError, RejectedRows
from pulso_etl.sync.ledger.watermarks import RunningAttempt, Watermarks
from pulso_etl.sync.loading.quarantine import as_json
from pulso_etl.sync.loading.request import PlanName
from pulso_etl.sync.postgres.encoding import Encoding
from pulso_etl.sync.postgres.sessions import Session
from pulso_etl.sync.spec import Column, ColumnType, OnReject, TableSpec
from pulso_etl_tests.databases import database
from pulso_etl_tests.sync.samples import D1, D2, WINDOW, Loads, row, things, wider

NAME = Column(name="agente", type=ColumnType.TEXT)


def named(**changes: object) -> TableSpec:
    return things(NAME, **changes)


def rows_of(*names: str) -> pa.Table:
    return wider([row(D1, str(number)) for number in range(len(names))], agente=list(names))


@dataclass
class Foreign:
    """Loads into the schema `loaded` of a database in another encoding, and reads there with another client."""

    loads: Loads
    reader: psycopg.Connection

    def names(self) -> list[str]:
        return [name for (name,) in self.reader.execute("SELECT agente FROM loaded.things ORDER BY name")]


EVERY = pytest.mark.parametrize("url", ["LATIN1", "WIN1252", "EUC_JP", "EUC_KR", "EUC_TW"], indirect=True)
"""Of the first two a client knows what they hold, of the others the server alone."""


@pytest.fixture(scope="module")
def url(request: pytest.FixtureRequest, server_url: str) -> Iterator[str]:
    with database(server_url, request.param) as url:
        yield url


@pytest.fixture
def foreign(url: str) -> Iterator[Foreign]:
    with Session(url, "test").hold() as conn, psycopg.connect(url, client_encoding="UTF8", autocommit=True) as reader:
        conn.execute("CREATE SCHEMA loaded")
        yield Foreign(Loads(conn, "loaded"), reader)
        conn.execute("DROP SCHEMA IF EXISTS loaded CASCADE")


@pytest.fixture
def encoding(foreign: Foreign) -> str:
    return Encoding.of(foreign.loads.conn).name


TEXTS = {
    "LATIN1": ["José Núñez", "ÿ", "«¿»"],
    "WIN1252": ["José Núñez", "€", "“Œ”"],
    "EUC_JP": ["日本", "№①", "Я"],
    "EUC_KR": ["안녕", "日本", "Я"],
}
TEXTS["EUC_TW"] = ["臺灣", "ok", "Ω"]
BEYOND = {"LATIN1": "100 € más", "WIN1252": "Дмитрий", "EUC_JP": "안녕", "EUC_KR": "ñandú", "EUC_TW": "100 €"}
KINDS = {"LATIN1": "currency sign", "WIN1252": "letter \\(Cyrillic\\)", "EUC_JP": "letter \\(Hangul\\)"}
KINDS |= {"EUC_KR": "letter \\(Latin\\)", "EUC_TW": "currency sign"}


SPELLED = {"LATIN1": "100 \\u20ac más", "WIN1252": "".join(f"\\u{ord(one):04x}" for one in "Дмитрий"), "EUC_JP": "\\uc548\\ub155"}
SPELLED |= {"EUC_KR": "\\xf1and\\xfa", "EUC_TW": "100 \\u20ac"}
"""What is written down of them."""


@EVERY
def test_what_the_database_can_hold_is_stored_as_it_was_sent(foreign: Foreign, encoding: str, plan: PlanName) -> None:
    texts = TEXTS[encoding]
    assert foreign.loads(rows_of(*texts), named(), plan=plan).total.inserted == 3
    assert foreign.names() == texts
    assert foreign.loads(rows_of(*texts), named()).total.unchanged == 3


@EVERY
def test_what_it_can_t_hold_is_refused_and_names_the_column_and_the_kind(foreign: Foreign, encoding: str, plan: PlanName) -> None:
    with pytest.raises(ContractError, match="column agente") as refused:
        foreign.loads(rows_of("Ana", BEYOND[encoding]), named(), plan=plan)
    assert BEYOND[encoding] not in str(refused.value)
    assert isinstance(refused.value, RejectedRows)
    told = f"a character \\({KINDS[encoding]}\\) that the database's encoding {encoding} can't hold in 1 row"
    assert refused.match(f"column agente, partition {D1}: {told}")


@EVERY
def test_what_it_can_t_hold_is_quarantined_and_the_rest_is_loaded(foreign: Foreign, encoding: str, plan: PlanName) -> None:
    spec = named(on_reject=OnReject.QUARANTINE, maximum_quarantined_share=1)
    done = foreign.loads(rows_of("Ana", BEYOND[encoding], TEXTS[encoding][0]), spec, plan=plan)
    assert (done.total.inserted, done.total.quarantined) == (2, 1)
    assert foreign.names() == ["Ana", TEXTS[encoding][0]]
    kept = foreign.reader.execute("SELECT reason, column_name, source_row->>'agente' FROM loaded.etl_quarantine").fetchall()
    assert kept == [("not in the database's encoding", "agente", SPELLED[encoding])]


@EVERY
def test_a_key_that_it_can_t_hold_is_quarantined_too(foreign: Foreign, encoding: str) -> None:
    spec = things(on_reject=OnReject.QUARANTINE, maximum_quarantined_share=1)
    done = foreign.loads([row(D1, BEYOND[encoding]), row(D2, "b")], spec)
    assert (done.total.inserted, done.total.quarantined) == (1, 1)


@EVERY
def test_what_we_write_down_ourselves_never_fails_for_a_character(foreign: Foreign, encoding: str) -> None:
    conn, marks, text = foreign.loads.conn, Watermarks("loaded"), BEYOND[encoding]
    extraction = RunningAttempt("things", WINDOW, "r", 1, datetime.now(UTC))
    with conn.transaction():
        marks.create(conn)
        marks.start(conn, extraction)
        marks.fail(
            conn, extraction, error=text, cause=Cause.INTERNAL, seconds=1, metadata={text: [text, {"a": (text, 1, None)}], "ñ": "ñ"}
        )
    state = marks.read(conn, datetime.now(UTC) - timedelta(hours=1))["things"]
    told = Encoding(encoding).storable(text)
    assert told != text
    assert state.error == told
    assert state.attempts[0].metadata[told] == [told, {"a": [told, 1, None]}]
    spelled = Encoding(encoding).storable("ñ")
    assert state.attempts[0].metadata[spelled] == spelled
    assert (spelled == "ñ") is (encoding in ("LATIN1", "WIN1252", "EUC_JP"))


def test_a_database_without_an_encoding_is_refused_in_one_sentence(server_url: str) -> None:
    with (
        database(server_url, "SQL_ASCII") as url,
        pytest.raises(DestinationError, match=r"the database d_\w+ has the encoding SQL_ASCII") as refused,
        Session(url, "test").hold(),
    ):
        pass
    assert not refused.value.retryable
    assert "\n" not in str(refused.value)


def test_a_row_is_told_as_json_with_what_the_encoding_lacks_spelled_out() -> None:
    assert as_json({"a": "ñ€\0", "b": 1}, Encoding("LATIN1")) == '{"a": "ñ\\\\u20ac\\\\u0000", "b": 1}'
