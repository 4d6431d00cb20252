"""Settles on an account of BigQuery what its documentation leaves open, and writes down the answers.

The look at sources, the states of partitions and the double of the tests rest on rules. Each point asks for one of them, on small
tables of a dataset that is made for it and deleted at the end. No query can bill more than MOST_BILLED, so all points together cost
less than a US cent. The record holds answers only: no credentials, no names but those of the scratch tables, and the project's name
only if it is asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from google.api_core.exceptions import Conflict, GoogleAPICallError
from google.cloud import bigquery

from pulso_etl.bigquery.pricing import LEAST_BYTES, TIB

MOST_BILLED = 3 * LEAST_BYTES
"""Limit of bytes of each query."""
MOST_QUERIES = 40
"""The points send fewer queries that bill."""
PRICE_PER_TIB = 6.25
MOST_USD = MOST_QUERIES * MOST_BILLED / TIB * PRICE_PER_TIB
"""The most that all points cost on demand."""
SECONDS = 60.0
STREAM_SECONDS = 20.0
"""How long a row that was streamed may take until the table tells of its buffer."""
FIRST, LAST, NEVER = date(2026, 7, 13), date(2026, 7, 15), date(1, 1, 1)
READ = "SELECT d, n FROM `{top}` WHERE d BETWEEN @start AND @end"
PARTITIONS = """
SELECT partition_id, UNIX_MILLIS(last_modified_time) AS modified, total_rows FROM `{dataset}.INFORMATION_SCHEMA.PARTITIONS`
WHERE table_name = 'base'
"""


@dataclass
class Scratch:
    """A dataset with a table `base` partitioned by day, a view `middle` over it and a view `top` over that.

    Three days have two rows each, of 24 bytes: a date and a NUMERIC.
    """

    client: bigquery.Client
    dataset: str
    sent: int = 0

    @property
    def names(self) -> dict[str, str]:
        return {"dataset": self.dataset} | {name: f"{self.dataset}.{name}" for name in ("base", "middle", "top")}

    def run(self, statement: str, **config: Any) -> bigquery.QueryJob:
        """A finished job, which bills at most MOST_BILLED. Labels, parameters and the like are in `config`.

        Raises RuntimeError instead of more than MOST_QUERIES jobs that may bill.
        """
        asked = bigquery.QueryJobConfig(**{"maximum_bytes_billed": MOST_BILLED, **config})
        self.sent += not asked.dry_run
        if self.sent > MOST_QUERIES:
            raise RuntimeError(f"no more than {MOST_QUERIES} queries")
        job = self.client.query(statement.format(**self.names), job_config=asked, timeout=SECONDS)
        if not asked.dry_run:
            job.result(timeout=SECONDS)
        return job

    def read(self, start: date = FIRST, end: date = LAST, **config: Any) -> bigquery.QueryJob:
        """Reads days of the view `top`."""
        days = [bigquery.ScalarQueryParameter(name, "DATE", day) for name, day in (("start", start), ("end", end))]
        return self.run(READ, query_parameters=days, **config)

    def size(self, start: date = FIRST, end: date = LAST) -> int:
        """Bytes of these days, by a dry run."""
        return int(self.read(start, end, dry_run=True, use_query_cache=False).total_bytes_processed or 0)

    def table(self, name: str = "base") -> bigquery.Table:
        return self.client.get_table(self.names[name], timeout=SECONDS)

    def partitions(self) -> dict[str, tuple[int, int]]:
        """The time and the rows of each partition."""
        return {row.partition_id: (row.modified, row.total_rows) for row in self.run(PARTITIONS).result()}

    def moves(self, statement: str, name: str = "base") -> bool:
        """Whether the statement moves the time of the table."""
        before = self.table(name).modified
        self.run(statement)
        return bool(self.table(name).modified != before)


@contextmanager
def scratch(client: bigquery.Client) -> Iterator[Scratch]:
    """Makes the tables, and deletes them with their dataset at the end."""
    made = Scratch(client, f"{client.project}.pulso_verify_{uuid4().hex[:12]}")
    dataset = bigquery.Dataset(made.dataset)
    dataset.default_table_expiration_ms = 3_600_000
    client.create_dataset(dataset, timeout=SECONDS)
    try:
        base = bigquery.Table(made.names["base"], [bigquery.SchemaField("d", "DATE"), bigquery.SchemaField("n", "NUMERIC")])
        base.time_partitioning = bigquery.TimePartitioning(field="d")
        client.create_table(base, timeout=SECONDS)
        days = [date(2026, 7, number) for number in (13, 14, 15)]
        rows = ", ".join(f"(DATE '{day}', NUMERIC '{n}.5')" for day in days for n in (1, 2))
        made.run("INSERT INTO `{base}` (d, n) VALUES " + rows)  # noqa: S608 - our own rows
        made.run("CREATE VIEW `{middle}` AS SELECT * FROM `{base}`")
        made.run("CREATE VIEW `{top}` AS SELECT d, n FROM `{middle}`")
        yield made
    finally:
        client.delete_dataset(made.dataset, delete_contents=True, not_found_ok=True, timeout=SECONDS)


Answer = Callable[[Scratch], Any]


@dataclass(frozen=True)
class Point:
    """An open point: a question for people, how it is answered (as plain JSON), and the rule of the double."""

    name: str
    question: str
    ask: Answer
    rule: Any


def _referenced(made: Scratch) -> list[str]:
    return sorted(ref.table_id for ref in made.read(dry_run=True, use_query_cache=False).referenced_tables)


def _second(made: Scratch, **config: Any) -> bool:
    """Whether the cache answers a query that was just asked, with another configuration."""
    made.read()
    return bool(made.read(**config).cache_hit)


def _after_write(made: Scratch) -> bool:
    made.read()
    made.run("UPDATE `{base}` SET n = n + 1 WHERE d = '2026-07-15'")
    return bool(made.read().cache_hit)


def _emptied(made: Scratch) -> str:
    """What becomes of a partition whose rows are deleted."""
    made.run("DELETE FROM `{base}` WHERE d = '2026-07-13'")
    found = made.partitions().get("20260713")
    return "gone" if found is None else f"there with {found[1]} rows"


def _others_stay(made: Scratch) -> bool:
    before = made.partitions()
    made.run("UPDATE `{base}` SET n = n + 1 WHERE d = '2026-07-15'")
    after = made.partitions()
    return before["20260715"][0] != after["20260715"][0] and before["20260714"] == after["20260714"]


def _decorator(made: Scratch) -> str:
    try:
        return f"{made.client.get_table(made.names['base'] + '$20260715', timeout=SECONDS).num_rows} rows"
    except (GoogleAPICallError, ValueError):
        return "refused"


def _limit(made: Scratch) -> str:
    try:
        made.read(use_query_cache=False, maximum_bytes_billed=1)
    except GoogleAPICallError as error:
        return next((str(one.get("reason")) for one in error.errors if isinstance(one, dict)), "")
    return "it ran"


def _twice(made: Scratch) -> str:
    """What becomes of a second job with the id of another one. Neither reads a table, so neither bills."""
    job = f"pulso_verify_{uuid4().hex}"
    made.client.query("SELECT 1 AS n", job_id=job, job_retry=None, timeout=SECONDS).result(timeout=SECONDS)
    try:
        made.client.query("SELECT 1 AS n", job_id=job, job_retry=None, timeout=SECONDS)
    except Conflict as error:
        return next((str(one.get("reason")) for one in error.errors if isinstance(one, dict)), "")
    return "it ran"


def _columns(made: Scratch) -> list[str]:
    """The columns that come of a result, if one of them is asked for."""
    job = made.read()
    fields = [field for field in job.result(timeout=SECONDS).schema if field.name == "n"]
    return sorted({name for row in made.client.list_rows(job.destination, fields, timeout=SECONDS) for name in dict(row)})


def _buffer(made: Scratch) -> bool:
    """Whether tables.get tells of rows that were streamed."""
    made.client.insert_rows_json(made.names["base"], [{"d": "2026-07-15", "n": "3"}], timeout=SECONDS)
    until = time.monotonic() + STREAM_SECONDS
    while time.monotonic() < until:
        if made.table().streaming_buffer is not None:
            return True
        time.sleep(1)
    return False


POINTS = (
    Point("referenced_tables", "which tables does a dry run name through two views?", _referenced, ["base"]),
    Point("bytes_of_all_days", "how many bytes have 6 rows of a DATE and a NUMERIC?", Scratch.size, 144),
    Point("bytes_of_a_day", "how many bytes has one of three days?", lambda made: made.size(LAST, LAST), 48),
    Point("bytes_of_no_day", "how many bytes has a day without a partition?", lambda made: made.size(NEVER, NEVER), 0),
    Point(
        "billed",
        "what does a query of one table bill at least?",
        lambda made: made.read(use_query_cache=False).total_bytes_billed,
        10485760,
    ),
    Point(
        "billed_for_no_day",
        "what does a query bill that reads no partition?",
        lambda made: made.read(NEVER, NEVER, use_query_cache=False).total_bytes_billed,
        10485760,
    ),
    Point(
        "partitions_billed",
        "what does a query of INFORMATION_SCHEMA bill?",
        lambda made: made.run(PARTITIONS).total_bytes_billed,
        10485760,
    ),
    Point("limit", "which reason has a query above its limit of bytes?", _limit, "bytesBilledLimitExceeded"),
    Point("cached", "does the cache answer the same text and parameters through views?", _second, True),
    Point("cached_with_a_label", "does it, under another label?", lambda made: _second(made, labels={"run_id": uuid4().hex}), True),
    Point(
        "cached_for_a_day",
        "does it, for other parameters?",
        lambda made: _second(made, use_query_cache=True) and bool(made.read(LAST, LAST).cache_hit),
        False,
    ),
    Point("job_id_twice", "which reason has a second job with the id of another one?", _twice, "duplicate"),
    Point("columns_of_a_result", "which columns of a result come, if one is asked for?", _columns, ["n"]),
    Point(
        "rows_add_up",
        "do the rows of the partitions add up to those of the table?",
        lambda made: sum(rows for _, rows in made.partitions().values()) == made.table().num_rows,
        True,
    ),
    Point("decorator", "does tables.get tell of one partition, base$20260715?", _decorator, "refused"),
    Point(
        "view_moves",
        "does a write to the base table move the time of the view?",
        lambda made: made.moves("UPDATE `{base}` SET n = n + 1 WHERE d = '2026-07-14'", "top"),
        False,
    ),
    Point(
        "update_moves",
        "does an UPDATE move the time of a table?",
        lambda made: made.moves("UPDATE `{base}` SET n = n + 1 WHERE d = '2026-07-14'"),
        True,
    ),
    Point(
        "update_of_nothing_moves",
        "does an UPDATE that changes no row?",
        lambda made: made.moves("UPDATE `{base}` SET n = 0 WHERE FALSE"),
        True,
    ),
    Point("cached_after_a_write", "does the cache answer after a write?", _after_write, False),
    Point("other_partitions_stay", "does a write to one day leave the states of other partitions?", _others_stay, True),
    Point("emptied_partition", "what becomes of a partition whose rows are deleted?", _emptied, "gone"),
    Point(
        "delete_moves",
        "does a DELETE that empties a partition move the time of the table?",
        lambda made: made.moves("DELETE FROM `{base}` WHERE d = '2026-07-14'"),
        True,
    ),
    Point("buffer", "does tables.get tell of rows that were streamed?", _buffer, True),
)
"""In this order: later points change the tables."""


@dataclass(frozen=True)
class Record:
    """The answers of one account, or of the double (`against`), by the names of the points. A point that failed has no answer, and
    a text in `faults`. `project` is empty unless it was asked for."""

    against: str
    made_at: datetime
    answers: Mapping[str, Any]
    faults: Mapping[str, str] = field(default_factory=dict)
    project: str = ""

    def as_json(self) -> str:
        told = {
            "against": self.against,
            "made_at": self.made_at.isoformat(timespec="seconds"),
            "project": self.project,
            "answers": dict(self.answers),
            "faults": dict(self.faults),
        }
        return json.dumps(told, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, file: Path) -> Record:
        """A record that was written. Raises ValueError for anything else."""
        told = json.loads(file.read_text(encoding="utf-8"))
        try:
            made_at = datetime.fromisoformat(told["made_at"])
            return cls(told["against"], made_at, told["answers"], told.get("faults", {}), told.get("project", ""))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file} is no record of verify-source: {error!r}") from error

    @property
    def differences(self) -> dict[str, tuple[Any, Any]]:
        """The points at which the answer is not the rule of the double: the rule, and the answer. Points that are not known any
        more do not count."""
        rules = {point.name: point.rule for point in POINTS}
        return {name: (rules[name], answer) for name, answer in self.answers.items() if name in rules and answer != rules[name]}


def verify(client: bigquery.Client, against: str, say: Callable[[Point, str], None] = lambda *_: None) -> Record:
    """Asks every point. `say` hears of each with its answer. A point that fails does not stop the others.

    Raises the client's errors if the scratch tables can't be made.
    """
    answers: dict[str, Any] = {}
    faults: dict[str, str] = {}
    with scratch(client) as made:
        for point in POINTS:
            try:
                answers[point.name] = point.ask(made)
                say(point, json.dumps(answers[point.name]))
            except (GoogleAPICallError, TimeoutError) as error:
                faults[point.name] = " ".join(str(error).replace(client.project, "PROJECT").split())[:300]
                say(point, f"failed: {faults[point.name]}")
    return Record(against, datetime.now(UTC), answers, faults)
