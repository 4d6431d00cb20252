"""The encoding of a database: which characters it can hold, and how what it can't hold is told and written down."""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from psycopg import BaseConnection, Connection
from psycopg.types.json import set_json_dumps
from psycopg.types.string import StrDumperUnknown

from pulso_etl.sync.errors import DestinationError
from pulso_etl.sync.postgres.characters import held_by

KINDS = {
    "L": "letter",
    "M": "accent on its own",
    "N": "number sign",
    "P": "punctuation mark",
    "Sc": "currency sign",
    "Sm": "mathematical sign",
    "S": "symbol, as emoji are",
    "Z": "space of a special kind",
    "C": "control character",
}
"""What people call characters of a Unicode category, by the beginning of its name."""


@dataclass(frozen=True)
class Encoding:
    """An encoding by PostgreSQL's name."""

    name: str

    @classmethod
    def of(cls, conn: BaseConnection[Any]) -> Encoding:
        """That of the session's database."""
        return cls(conn.info.parameter_status("server_encoding") or "UTF8")

    @classmethod
    def learnt(cls, conn: Connection) -> Encoding:
        """That of the database of a session that was just opened, which is asked what it holds where only it knows that."""
        encoding = cls.of(conn)
        if not encoding.holds_all and encoding.codec is None:
            held_by(conn, encoding.name)
        return encoding

    @property
    def holds_all(self) -> bool:
        return self.name in ("UTF8", "SQL_ASCII")

    @cached_property
    def codec(self) -> str | None:
        """Python's codec of the same characters; None for UTF8, which holds all, and where only the server knows."""
        # Those of one byte are the same in Python and PostgreSQL. In the others each has characters that the other lacks.
        found = re.fullmatch(r"(LATIN\d+|ISO_8859_\d|WIN\d+|KOI8[RU])", self.name)
        return codecs.lookup(re.sub("^WIN", "cp", self.name).replace("KOI8", "koi8_")).name if found else None

    def refuse_none(self, database: str) -> None:
        """Raises DestinationError for SQL_ASCII, in which PostgreSQL takes any bytes for text."""
        if self.name == "SQL_ASCII":
            raise DestinationError(
                f"PostgreSQL: the database {database} has the encoding SQL_ASCII, in which text of any encoding is stored without "
                "a look at it; create one with ENCODING 'UTF8' TEMPLATE template0, move the tables, and name it in DATABASE_URL"
            )

    def beyond(self, values: pa.Array) -> pa.BooleanArray | None:
        """Which texts have a character that the database can't hold; None where all fit."""
        if not self.is_known:
            return None
        bad = [text for text in pc.unique(values).to_pylist() if text and not text.isascii() and not self.holds(text)]
        return pc.is_in(values, pa.array(bad, values.type)) if bad else None

    @property
    def is_known(self) -> bool:
        """Whether there are characters that it can't hold, and it is known which."""
        return self.codec is not None or (not self.holds_all and held_by(None, self.name) is not None)

    def holds(self, text: str) -> bool:
        """Whether the database can hold the text, as far as that is known here."""
        return self.storable(text) == text

    def missing_kind(self, text: str) -> str:
        """What kind of character the first one is that the database can't hold: never the character, which is data."""
        character = next((one for one in text if not self.holds(one)), "")
        category = unicodedata.category(character) if character else "C"
        kind = KINDS.get(category) or KINDS[category[0]]
        script = unicodedata.name(character, "").partition(" ")[0] if category[0] == "L" else ""
        return f"{kind} ({script.title()})" if script else kind

    def storable(self, text: str) -> str:
        """The text with each character that the database can't hold written as `\\u20ac`, say."""
        if self.codec:
            return text.encode(self.codec, "backslashreplace").decode(self.codec)
        if text.isascii() or not self.is_known:
            return text
        held = held_by(None, self.name) or frozenset()
        return "".join(one if one in held or one.isascii() else one.encode("ascii", "backslashreplace").decode() for one in text)

    def adapt(self, conn: BaseConnection[Any]) -> None:
        """From now on what the session writes of texts, and as JSON, is `storable`; data of a COPY are not touched."""
        if not self.is_known:
            return
        encoding = self

        class Storable(StrDumperUnknown):
            def dump(self, obj: str) -> Any:
                return super().dump(encoding.storable(obj))

        conn.adapters.register_dumper(str, Storable)
        set_json_dumps(lambda value: json.dumps(plain(value, encoding), ensure_ascii=False), conn)


def plain(value: Any, encoding: Encoding) -> Any:
    """A value of JSON whose every text is storable."""
    match value:
        case str():
            return encoding.storable(value)
        case dict():
            return {encoding.storable(str(key)): plain(one, encoding) for key, one in value.items()}
        case list() | tuple():
            return [plain(one, encoding) for one in value]
    return value


UTF8 = Encoding("UTF8")
