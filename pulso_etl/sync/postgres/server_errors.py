"""The meaning of PostgreSQL's errors. One table maps its error classes to ours, and all code that translates errors uses it.

A code (SQLSTATE) has five characters; the first two are its class. An entry for a code wins over the entry for its class. No code
searches the server's text, because the server chooses its language.
"""

from __future__ import annotations

import re
import select
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psycopg
from psycopg import errors as pg
from psycopg import pq

from pulso_etl.sync.errors import (
    ContractError,
    DestinationError,
    DestinationUnavailable,
    LoadTimedOut,
    RejectedRows,
    TableBusy,
    first_line,
)
from pulso_etl.sync.spec import IDENTIFIER

ASK_SECONDS = 5.0
"""How long a server that refused a connection may take to say why."""
ERROR_CODE = re.compile(r'\tErrorResponse\t S ".*?" V "[A-Z]+" C "([0-9A-Z]{5})"')
"""The code of an error in libpq's trace of the protocol; the field V is there since PostgreSQL 9.6."""


@dataclass(frozen=True)
class Meaning:
    """How we report an error: the class that it becomes, the words that say what PostgreSQL does, and advice.

    `by_row`: only some rows are wrong, and the others could be loaded. `instead` replaces the server's text if it shows a value.
    """

    becomes: type[DestinationError]
    says: str
    advice: str = ""
    by_row: bool = False
    instead: str = ""

    def tell(self, error: psycopg.Error, where: str = "") -> DestinationError:
        """The error as one of ours, for the table and range `where`, without the server's details, which hold values of rows."""
        text = self.instead or error.diag.message_primary or first_line(error)
        place = " ".join(
            f"{kind} {name}"
            for kind, name in (("column", _column(error)), ("constraint", error.diag.constraint_name))
            if name and name not in text
        )
        told = f"PostgreSQL{self.says}: {text}" + (f" ({place})" if place else "") + (f"; {self.advice}" if self.advice else "")
        return self.becomes(f"{where}: {told}" if where else told)


def _column(error: psycopg.Error) -> str | None:
    """The column, if the server names it. For a COPY only the context has it, as its last word in every language."""
    if error.diag.column_name or not (context := error.diag.context):
        return error.diag.column_name
    last = context.rpartition(" ")[2]
    return last if re.fullmatch(IDENTIFIER, last) else None


def _away(says: str, advice: str = "") -> Meaning:
    return Meaning(DestinationUnavailable, says, advice)


def _row(says: str = " refuses a row") -> Meaning:
    return Meaning(RejectedRows, says, "nothing was loaded", by_row=True)


AWAY = _away(" is away")
OURS = Meaning(DestinationError, "", "report it as a fault of Pulso ETL, unless the table has triggers, rules or views of your own")
SERVER = Meaning(DestinationError, "", "see the server's log")
BUSY = _away(" stopped the load", "a later attempt may pass")

CLASSES: dict[str, Meaning] = {
    "00": SERVER,  # success
    "01": SERVER,  # warning
    "02": SERVER,  # no data
    "03": OURS,  # statement not yet complete
    "08": AWAY,  # connection
    "09": _row(),  # triggered action
    "0A": OURS,  # not supported
    "0B": OURS,  # transaction initiation
    "0F": OURS,  # locator
    "0L": Meaning(DestinationError, "", "grant the role that right"),  # grantor
    "0P": Meaning(DestinationError, "", "check the role that DATABASE_ROLE names"),  # role specification
    "0Z": OURS,  # diagnostics
    "10": OURS,  # XQuery
    "20": OURS,  # case not found
    "21": OURS,  # cardinality
    "22": _row(),  # data
    "23": _row(),  # integrity constraint
    "24": OURS,  # cursor state
    "25": OURS,  # transaction state
    "26": OURS,  # statement name
    "27": OURS,  # triggered data change
    "28": Meaning(
        DestinationError, " refuses the login", "check user and password of DATABASE_URL, the role's LOGIN, and pg_hba.conf"
    ),
    "2B": Meaning(DestinationError, "", "drop what depends on it first"),
    "2D": OURS,  # transaction termination
    "2F": OURS,  # SQL routine
    "34": OURS,  # cursor name
    "38": OURS,  # external routine
    "39": OURS,  # external routine invocation
    "3B": OURS,  # savepoint
    "3D": Meaning(DestinationError, " refuses the login", "create the database, or name another in DATABASE_URL"),
    "3F": Meaning(DestinationError, "", "create the schema, or name another in DATABASE_SCHEMA"),
    "40": BUSY,  # transaction rollback
    "42": OURS,  # syntax, or a name that is not there
    "44": _row(),  # check option of a view
    "53": _away(" lacks a resource", "give the server more of it, or wait until some is free"),  # resources
    "54": _row(" refuses a row that exceeds a limit"),  # program limit
    "55": Meaning(DestinationError, "", "repair the object first"),  # not in the state that is needed
    "57": AWAY,  # operator intervention
    "58": Meaning(DestinationError, " fails on its own files", "see the server's log and disks"),  # system
    "72": BUSY,  # snapshot too old
    "F0": SERVER,  # configuration file
    "HV": SERVER,  # foreign data
    "P0": Meaning(RejectedRows, " refuses a row", "nothing was loaded; look at the table's triggers"),  # PL/pgSQL
    "XX": SERVER,  # internal
}
"""By class: see Appendix A of PostgreSQL's manual."""

CODES: dict[str, Meaning] = {
    "22P05": replace(_row(), instead="a text has a character that the database's encoding can't hold"),
    "25006": _away(" accepts no writes for now", "name the primary in DATABASE_URL, or find out why the server is read-only"),
    "25P03": _away(" ended the session, which had waited too long", "a later attempt may pass; give the table a longer timeout"),
    "25P04": Meaning(
        LoadTimedOut, " ended the load, which took too long", "a later attempt may pass; give the table a longer timeout"
    ),
    "40002": _row(),  # integrity constraint, found at the commit
    "42501": Meaning(DestinationError, "", "grant the role that right"),
    "53100": _away(" has no disk space left", "free disk space; then a later attempt may pass"),
    "53200": _away(" has no memory left", "a later attempt may pass; lower WORK_MEM_MB"),
    "53300": _away(" has no connection left", "a later attempt may pass; raise max_connections or the role's limit"),
    "53400": Meaning(DestinationError, " has reached the limit of a setting", "raise the setting that it names"),
    "54001": OURS,  # statement too complex
    "54011": Meaning(ContractError, " refuses so many columns", "nothing was loaded; declare fewer columns"),
    "54023": OURS,  # too many arguments
    "55006": BUSY,  # in use
    "55P03": Meaning(TableBusy, ": another writer held the table for too long", "try again later"),
    "57014": Meaning(
        LoadTimedOut, ": the statement was ended", "a later attempt may pass; if none does, give the table a longer timeout"
    ),
    "57P01": _away(" ended the session", "a later attempt may pass"),
    "57P04": Meaning(DestinationError, ": the database was dropped", "create the database, or name another in DATABASE_URL"),
    "58030": _away(" fails on its own files", "see the server's log and disks"),
}
"""Codes with another meaning than their class."""


def meaning(error: psycopg.Error) -> Meaning:
    """The meaning of the error. An operational error without a code is a broken connection; another error without one is a bug."""
    code = error.sqlstate
    if code is None:
        return AWAY if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) else OURS
    return CODES.get(code) or CLASSES.get(code[:2]) or SERVER


def keeps_out(error: psycopg.Error) -> bool:
    """Whether the server cannot be reached or refuses connections, for now or until somebody repairs it."""
    return meaning(error).becomes.cause.retryable or (error.sqlstate or "")[:2] in ("28", "3D")


@contextmanager
def naming_refusals(conninfo: str) -> Iterator[None]:
    """Adds the server's code to the error of a failed attempt to connect, because libpq does not pass it on.

    If the server answered, this asks it again and reads the code from the protocol.
    """
    try:
        yield
    except psycopg.OperationalError as error:
        if error.sqlstate is not None or error.pgconn is None or isinstance(error, pg.ConnectionTimeout):
            raise
        named = with_code(refusal_code(conninfo), first_line(error))
        if named is None:
            raise
        raise named from None


def with_code(code: str | None, text: str) -> psycopg.Error | None:
    """psycopg's error for the code, with this text. None if there is no code, or psycopg does not know it."""
    try:
        return pg.lookup(code)(text) if code else None
    except KeyError:
        return None


def refusal_code(conninfo: str, seconds: float = ASK_SECONDS) -> str | None:
    """The code of the error with which the server refuses the connection. None if it sends no code in time, or does not refuse.

    If the server asks for a password and none is given, the password counts as wrong.
    """
    conn, deadline = pq.PGconn.connect_start(conninfo.encode()), time.monotonic() + seconds
    # The trace may hold a password, so it goes into a file without a name.
    with tempfile.TemporaryFile() as trace:
        try:
            if conn.status == pq.ConnStatus.BAD:
                return None
            conn.trace(trace.fileno())
            while (polled := conn.connect_poll()) in (pq.PollingStatus.READING, pq.PollingStatus.WRITING):
                reading = polled == pq.PollingStatus.READING
                left = max(0.0, deadline - time.monotonic())
                ready = select.select([conn.socket] * reading, [conn.socket] * (not reading), [], left)
                if not any(ready):
                    return None
            if polled == pq.PollingStatus.OK:
                return None
            if conn.needs_password:
                return pg.InvalidPassword.sqlstate
            conn.untrace()
        finally:
            conn.finish()
        trace.seek(0)
        found = ERROR_CODE.findall(trace.read().decode(errors="replace"))
    return found[-1] if found else None
