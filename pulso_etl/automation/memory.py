"""What the refresh sensor remembers from one tick to the next: Dagster keeps it as the sensor's cursor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import TypeVar

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from pulso_etl.bigquery.pace import Pace

Item = TypeVar("Item")


class Word(BaseModel):
    """The newest announcement that a source was updated: the number of Dagster's event, the instant of the update as it says, and
    when the sensor first heard it, by the server's clock."""

    event: int
    updated_at: AwareDatetime
    heard_at: AwareDatetime


class Memory(BaseModel):
    """`looks`: when the source of a table is looked at again, for tables that are not due. `last`: the table that was looked at
    last. `words`: the newest announcement of each source. `pace`: what is known of the looks' requests."""

    looks: dict[str, AwareDatetime] = Field(default_factory=dict)
    last: str = ""
    words: dict[str, Word] = Field(default_factory=dict)
    pace: Pace = Pace()
    has_listened: bool = False
    """Whether a tick has asked for announcements before."""

    @classmethod
    def of(cls, cursor: str | None) -> Memory:
        """The memory in a cursor; an empty one if there is none, or one of another release."""
        try:
            return cls.model_validate_json(cursor or "{}")
        except ValidationError:
            return cls()

    def cursor(self, now: datetime) -> str:
        """The memory as a cursor. Looks that are over need not be remembered, so a cursor stays short however many tables there
        are."""
        kept = {table: at for table, at in self.looks.items() if at > now}
        return self.model_copy(update={"looks": kept}).model_dump_json(exclude_defaults=True)

    def in_turn(self, found: Mapping[str, Item]) -> Iterator[tuple[str, Item]]:
        """The tables with their items, beginning after the table that was looked at last: so each gets its turn."""
        names = list(found)
        start = names.index(self.last) + 1 if self.last in found else 0
        yield from ((name, found[name]) for name in (*names[start:], *names[:start]))

    def hear(self, source: str, event: int, updated_at: datetime, now: datetime, readers: Iterable[str]) -> None:
        """Remembers the newest announcement of a source, if it is new. The tables that read the source, its `readers`, then need
        not wait for their next look. An announcement from before the first tick was heard when it was made."""
        known = self.words.get(source)
        if known is None or event > known.event:
            self.words[source] = Word(event=event, updated_at=updated_at, heard_at=now if self.has_listened else updated_at)
            for table in readers:
                self.looks.pop(table, None)

    def word(self, sources: Iterable[str]) -> Word | None:
        """The announcement of these sources that was heard last."""
        return max((self.words[name] for name in sources if name in self.words), key=lambda word: word.heard_at, default=None)
