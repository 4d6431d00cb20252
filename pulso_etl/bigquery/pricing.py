"""What BigQuery takes for queries: by the bytes that they read (on demand), or by the slots that they use (an edition)."""

from __future__ import annotations

from dataclasses import dataclass

from pulso_etl.sync.ledger.queries import Usage

TIB = 2**40
MILLISECONDS_AN_HOUR = 3_600_000
MEBIBYTE = 2**20
LEAST_BYTES = 10 * MEBIBYTE
"""On demand, BigQuery bills at least this for each table that a query reads."""


@dataclass(frozen=True)
class Pricing:
    """Prices in US dollars: per TiB on demand, or per hour of a slot. If `per_slot_hour` is given, bytes cost nothing.

    On demand, the first `free_tib` TiB of an account's month cost nothing.
    """

    per_tib: float = 6.25
    per_slot_hour: float | None = None
    free_tib: float = 1.0

    def cost(self, used: Usage) -> float:
        """US dollars, before the free volume of the month."""
        if self.per_slot_hour is not None:
            return used.slot_millis / MILLISECONDS_AN_HOUR * self.per_slot_hour
        return used.bytes_billed / TIB * self.per_tib

    def cost_of_month(self, used: Usage) -> float:
        """US dollars of a whole month, or of its days so far, without the free volume."""
        if self.per_slot_hour is not None:
            return self.cost(used)
        return max(0.0, used.bytes_billed / TIB - self.free_tib) * self.per_tib


def billed(bytes_read: int, tables: int) -> int:
    """The bytes that BigQuery would bill on demand for a query that reads so many bytes of so many tables: whole MiB."""
    return max(-(-bytes_read // MEBIBYTE) * MEBIBYTE, LEAST_BYTES * max(1, tables)) if bytes_read else 0


def question_pays(bytes_read: int, tables: int, asked: int) -> bool:
    """Whether it can pay to ask for the states of the partitions of `asked` base tables, before a statement over a whole window
    that reads so many bytes of so many tables: whether the window bills more than the question and the narrowest read after it.

    The rule is the same for slots, whose cost nobody knows beforehand. Bytes then stand for the work: a small read is as short as a
    question, and one query takes fewer slots than two.
    """
    return billed(bytes_read, tables) > LEAST_BYTES * (asked + max(1, tables))
