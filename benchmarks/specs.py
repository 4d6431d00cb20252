"""Any number of tables: copies of the five under other names."""

from __future__ import annotations

from pulso_etl.sync.spec import TableSpec
from pulso_etl.tables import TABLES


def many(tables: int) -> dict[str, TableSpec]:
    """The copies by name."""
    five = list(TABLES.values())
    copies = ((f"{five[n % 5].name}_{n}", five[n % 5]) for n in range(tables))
    return {name: spec.model_copy(update={"name": name}) for name, spec in copies}
