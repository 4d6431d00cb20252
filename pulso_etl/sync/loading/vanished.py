"""Rows that the source no longer has, on days of which only some rows are staged.

The comparison shows which staged rows are new. All other rows that were read are in the table. If the table holds more rows than
these, some have vanished. Then the server gets the keys of all of the day's rows, and finds the table's rows of other keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc

from pulso_etl.sync.loading.copying import Copy
from pulso_etl.sync.loading.duplicates import are_counted, days_with_duplicates
from pulso_etl.sync.loading.result import Counts
from pulso_etl.sync.loading.staging import Staged
from pulso_etl.sync.loading.under_way import Load
from pulso_etl.sync.schema.statements import KEYS


def days_to_look_at(load: Load, staged: Staged, by_day: Mapping[date, Counts]) -> list[date]:
    """The days of which only some rows are staged, and of which rows may have vanished.

    These are the days of which the table does not hold just the rows that were read and are not new. A repeated key counts twice
    among the rows that were read, and may hide a vanished row. So days with repeated keys are looked at, too.
    """
    in_buckets = staged.digested.in_buckets if staged.digested else frozenset()
    if not in_buckets:
        return []
    repeated = days_with_duplicates(load, staged, in_buckets) if are_counted(load, staged) else set()
    held = load.held.rows
    by_count = {day for day in in_buckets if held.get(day, 0) != by_day[day].read - by_day[day].inserted}
    return sorted(by_count | repeated)


def find_vanished(load: Load, staged: Staged, days: Sequence[date]) -> None:
    """Adds the vanished rows of these days to the differences."""
    spec, statements, those = staged.spec, staged.statements, pa.array(days, pa.date32())
    wire = pa.schema([staged.wire.field(name) for name in spec.primary_key])
    kept = (batch.select(wire.names).filter(pc.is_in(batch.column(spec.partition_column), those)) for batch in load.aside.batches())
    load.conn.execute(statements.create_keys())
    Copy(load.target.declared_as(spec), wire, KEYS).send_conformed(kept)
    load.conn.execute(statements.analyze_keys())
    load.conn.execute(statements.add_vanished(days))
