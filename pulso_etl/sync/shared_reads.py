"""Reads that two tables share: one query of the host gives the rows of both, and each table loads them in a run of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import PlanError, SettingsError
from pulso_etl.sync.spec import TableSpec
from pulso_etl.sync.tags import SHARED_READ_TAG


@dataclass(frozen=True)
class SharedRead:
    """One read for several runs of one launch: the statement of the table `host` over the days of `window`.

    `key` belongs to this launch alone, so the read is not used by a later one.
    """

    key: str
    host: TableSpec
    window: DayRange

    @property
    def tags(self) -> dict[str, str]:
        """The tags of the runs that share it."""
        return {SHARED_READ_TAG: "/".join((self.key, self.host.name, str(self.window.start), str(self.window.end)))}

    @classmethod
    def of(cls, tags: Mapping[str, str], tables: Mapping[str, TableSpec]) -> SharedRead | None:
        """The read in the tags of a run; None if they name none of these tables."""
        try:
            key, host, start, end = tags.get(SHARED_READ_TAG, "").split("/")
            return cls(key, tables[host], DayRange.parse(start, end))
        except (ValueError, KeyError, PlanError):
            return None

    @classmethod
    def of_run(cls, spec: TableSpec, window: DayRange, run_id: str, others: Collection[TableSpec]) -> SharedRead | None:
        """The read that the table shares with `others` of the same run, which have the same days; None if it reads for itself."""
        host = next((one for one in (spec, *others) if one.name == (spec.source.reads_with or spec.name)), None)
        has_guest = host is not None and any(one.source.reads_with == host.name for one in (spec, *others))
        return cls(run_id, host, window) if host is not None and has_guest else None

    def serves(self, spec: TableSpec, window: DayRange) -> bool:
        """Whether it has the rows of the table over those days."""
        return self.host.name in (spec.name, spec.source.reads_with) and self.window.covers(window)


def check_hosts(tables: Mapping[str, TableSpec]) -> None:
    """Raises SettingsError if a table's `reads_with` names no table whose query can have its rows."""
    for spec in tables.values():
        if (host := spec.source.reads_with) is None:
            continue
        why = "there is no such table" if host not in tables else "; ".join(_faults(spec, tables[host]))
        if why:
            raise SettingsError(f"{spec.name}: reads_with {host}: {why}")


def _faults(guest: TableSpec, host: TableSpec) -> list[str]:
    """Why the query of the one cannot have the rows of the other. Whether it has them is for a test: it needs GoogleSQL."""
    has = {column.name: column.sql_type for column in host.query_columns}
    lacking = [column.name for column in guest.query_columns if column.name not in has]
    other = [column.name for column in guest.query_columns if has.get(column.name, column.sql_type) != column.sql_type]
    faults = (
        (guest.name == host.name, "a table can't read with itself"),
        (host.source.reads_with, f"it reads with {host.source.reads_with} itself"),
        (guest.sources != host.sources, f"it reads {', '.join(host.sources)}, and this table {', '.join(guest.sources)}"),
        (guest.timezone != host.timezone, f"its days are those of {host.timezone}"),
        (guest.primary_key != host.primary_key, f"its primary key is {', '.join(host.primary_key)}"),
        (guest.partition_column != host.partition_column, f"its partition column is {host.partition_column}"),
        (lacking, f"its query has no {', '.join(lacking)}"),
        (other, f"its {', '.join(other)} has another type"),
        (guest.source.change_capture or host.source.change_capture, "a table with change_capture shares no read"),
    )
    return [told for fault, told in faults if fault]
