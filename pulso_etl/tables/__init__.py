"""The tables: each is a module and a `.sql` file. A new pair is found without registration."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from pulso_etl.sync.spec import TableSpec


def find_tables() -> dict[str, TableSpec]:
    """Every declaration in the modules of this package, by its name, the greatest priority first.

    Raises ValueError if a declaration does not have the name of its module.
    """
    found: list[TableSpec] = []
    for module in iter_modules(__path__):
        specs = [one for one in vars(import_module(f"{__name__}.{module.name}")).values() if isinstance(one, TableSpec)]
        if wrong := [spec.name for spec in specs if spec.name != module.name]:
            raise ValueError(f"{__name__}.{module.name} declares {wrong[0]}: a module declares one table with the module's name")
        found += specs
    return {spec.name: spec for spec in sorted(found, key=lambda spec: (-spec.schedule.priority, spec.name))}


TABLES: dict[str, TableSpec] = find_tables()
"""Every table by its name, in the order of a refresh of all tables."""

__all__ = ["TABLES", "TableSpec", "find_tables"]
