"""Which characters a multi-byte encoding can hold. The server says it, because a client's tables differ from the server's."""

from __future__ import annotations

import psycopg
from psycopg import sql

RANGES = ((0x80, 0xD7FF), (0xE000, 0xFFFF), (0x20000, 0x2FFFF))
"""The ranges of Unicode that hold the characters of Chinese, Japanese and Korean encodings."""
ASK = """
DO $pulso$
DECLARE
    held integer[] := '{{}}';
    utf8 bytea;
BEGIN
    FOR point IN {first}..{last} LOOP
        utf8 := decode(to_hex(CASE
            WHEN point < 2048 THEN 49280 + ((point >> 6) << 8) + (point & 63)
            WHEN point < 65536 THEN 14712960 + ((point >> 12) << 16) + (((point >> 6) & 63) << 8) + (point & 63)
            ELSE 4034953344 + ((point >> 18)::bigint << 24)
                + (((point >> 12) & 63) << 16) + (((point >> 6) & 63) << 8) + (point & 63)
        END), 'hex');
        BEGIN
            PERFORM convert(utf8, 'UTF8', {encoding});
            held := held || point;
        EXCEPTION WHEN OTHERS THEN
            NULL;
        END;
    END LOOP;
    PERFORM set_config('pulso_etl.held', array_to_string(held, ' '), false);
END
$pulso$;
SELECT current_setting('pulso_etl.held')
"""
"""This takes half a second for all ranges, once for each process and encoding."""
_known: dict[str, frozenset[str]] = {}


def held_by(conn: psycopg.Connection | None, encoding: str) -> frozenset[str] | None:
    """The characters beyond ASCII that the encoding (PostgreSQL's name) can hold, or None if no server was asked yet.

    The session must be new and in autocommit mode. Raises psycopg.Error.
    """
    if encoding not in _known and conn is not None:
        _known[encoding] = frozenset(chr(point) for first, last in RANGES for point in _ask(conn, encoding, first, last))
    return _known.get(encoding)


def _ask(conn: psycopg.Connection, encoding: str, first: int, last: int) -> list[int]:
    names = {"first": sql.Literal(first), "last": sql.Literal(last), "encoding": sql.Literal(encoding)}
    answer = conn.execute(sql.SQL(ASK).format(**names))
    answer.nextset()
    row = answer.fetchone()
    assert row is not None
    return [int(point) for point in row[0].split()]
