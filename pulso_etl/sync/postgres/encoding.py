"""The encoding of a database: which characters it can hold, and how errors and records show the other characters."""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from psycopg import BaseConnection, Connection
from psycopg.types.json import set_json_dumps
from psycopg.types.string import StrDumperUnknown

from pulso_etl.sync.errors import DestinationError
from pulso_etl.sync.postgres.characters import held_by

if TYPE_CHECKING:
    import pyarrow as pa

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
"""Words for the characters of a Unicode category, by the beginning of the category's name."""


@dataclass(frozen=True)
class Encoding:
    """An encoding, with PostgreSQL's name."""

    name: str

    @classmethod
    def of(cls, conn: BaseConnection[Any]) -> Encoding:
        """The encoding of the session's database."""
        return cls(conn.info.parameter_status("server_encoding") or "UTF8")

    @classmethod
    def learnt(cls, conn: Connection) -> Encoding:
        """The encoding of a new session's database. Asks the server which characters it can hold if only the server knows that."""
        encoding = cls.of(conn)
        if not encoding.holds_all and encoding.codec is None:
            held_by(conn, encoding.name)
        return encoding

    @property
    def holds_all(self) -> bool:
        return self.name in ("UTF8", "SQL_ASCII")

    @cached_property
    def codec(self) -> str | None:
        """Python's codec with the same characters. None for UTF8, which holds all, and for encodings that only the server knows."""
        # Encodings of one byte are the same in Python and PostgreSQL. In the others each side has characters that the other lacks.
        found = re.fullmatch(r"(LATIN\d+|ISO_8859_\d|WIN\d+|KOI8[RU])", self.name)
        return codecs.lookup(re.sub("^WIN", "cp", self.name).replace("KOI8", "koi8_")).name if found else None

    def refuse_none(self, database: str) -> None:
        """Raises DestinationError for SQL_ASCII, in which PostgreSQL accepts any bytes as text."""
        if self.name == "SQL_ASCII":
            raise DestinationError(
                f"PostgreSQL: the database {database} has the encoding SQL_ASCII, which stores text of any encoding unchecked; "
                "create a database with ENCODING 'UTF8' TEMPLATE template0, move the tables, and name it in DATABASE_URL"
            )

    def beyond(self, values: pa.Array) -> pa.BooleanArray | None:
        """Which texts have a character that the database cannot hold, or None if all fit."""
        # Every process opens sessions, and only loads look at Arrow arrays.
        import pyarrow as pa
        import pyarrow.compute as pc

        if not self.is_known:
            return None
        bad = [text for text in pc.unique(values).to_pylist() if text and not text.isascii() and not self.holds(text)]
        return pc.is_in(values, pa.array(bad, values.type)) if bad else None

    @property
    def is_known(self) -> bool:
        """Whether it lacks characters, and we know which."""
        return self.codec is not None or (not self.holds_all and held_by(None, self.name) is not None)

    def holds(self, text: str) -> bool:
        """Whether the database can hold the text, as far as we know."""
        return self.storable(text) == text

    def missing_kind(self, text: str) -> str:
        """The kind of the first character that the database cannot hold. Never the character itself, because it is data."""
        character = next((one for one in text if not self.holds(one)), "")
        category = unicodedata.category(character) if character else "C"
        kind = KINDS.get(category) or KINDS[category[0]]
        script = unicodedata.name(character, "").partition(" ")[0] if category[0] == "L" else ""
        return f"{kind} ({script.title()})" if script else kind

    def storable(self, text: str) -> str:
        """The text, in which an escape such as `\\u20ac` replaces each character that the database cannot hold."""
        if self.codec:
            return text.encode(self.codec, "backslashreplace").decode(self.codec)
        if text.isascii() or not self.is_known:
            return text
        held = held_by(None, self.name) or frozenset()
        return "".join(one if one in held or one.isascii() else one.encode("ascii", "backslashreplace").decode() for one in text)

    def adapt(self, conn: BaseConnection[Any]) -> None:
        """From now on every text and JSON that the session writes is `storable`. This does not change the data of a COPY."""
        if not self.is_known:
            return
        encoding = self

        class Storable(StrDumperUnknown):
            def dump(self, obj: str) -> Any:
                return super().dump(encoding.storable(obj))

        conn.adapters.register_dumper(str, Storable)
        set_json_dumps(lambda value: json.dumps(plain(value, encoding), ensure_ascii=False), conn)


def plain(value: Any, encoding: Encoding) -> Any:
    """The JSON value, with every text made storable."""
    match value:
        case str():
            return encoding.storable(value)
        case dict():
            return {encoding.storable(str(key)): plain(one, encoding) for key, one in value.items()}
        case list() | tuple():
            return [plain(one, encoding) for one in value]
    return value


UTF8 = Encoding("UTF8")
