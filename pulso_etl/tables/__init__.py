"""The tables: each is a module and a `.sql` file, or a folder with `defs.yaml` and a `.sql` file. New ones are found without
registration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from pulso_etl.sync.errors import SettingsError
from pulso_etl.sync.shared_reads import check_hosts
from pulso_etl.sync.spec import TableSpec
from pulso_etl.table_files import read_table, table_files


def find_tables(roots: Sequence[str] = __path__) -> dict[str, TableSpec]:
    """Every declaration in the modules of this package, and in the folders below `roots`, by its name, the greatest priority first.

    Raises ValueError if a declaration does not have the name of its module, and SettingsError if a table is declared twice, or for
    what is wrong with a folder's files or with a `reads_with`.
    """
    found = [*_in_modules(), *(read_table(file) for root in roots for file in table_files(Path(root)))]
    if twice := [name for name, times in Counter(spec.name for spec in found).items() if times > 1]:
        raise SettingsError(f"tables declared twice, in a module and a folder or in two folders: {', '.join(twice)}")
    tables = {spec.name: spec for spec in sorted(found, key=lambda spec: (-spec.schedule.priority, spec.name))}
    check_hosts(tables)
    return tables


def _in_modules() -> Iterator[TableSpec]:
    for module in iter_modules(__path__):
        specs = [one for one in vars(import_module(f"{__name__}.{module.name}")).values() if isinstance(one, TableSpec)]
        if wrong := [spec.name for spec in specs if spec.name != module.name]:
            raise ValueError(f"{__name__}.{module.name} declares {wrong[0]}: a module declares one table with the module's name")
        yield from specs


TABLES: dict[str, TableSpec] = find_tables()
"""Every table by its name, in the order of a refresh of all tables."""

__all__ = ["TABLES", "TableSpec", "find_tables"]
