"""The tables: one module and one `.sql` file each. A new table is a new pair and a line below."""

from pulso_etl.sync.spec import TableSpec
from pulso_etl.tables.assignment_data import ASSIGNMENT_DATA
from pulso_etl.tables.dashboard_data import DASHBOARD_DATA
from pulso_etl.tables.evolution_data import EVOLUTION_DATA
from pulso_etl.tables.operation_data import OPERATION_DATA
from pulso_etl.tables.productivity_data import PRODUCTIVITY_DATA

TABLES: dict[str, TableSpec] = {
    spec.name: spec for spec in (DASHBOARD_DATA, EVOLUTION_DATA, ASSIGNMENT_DATA, OPERATION_DATA, PRODUCTIVITY_DATA)
}
"""Every table by its name, in the order in which a refresh of all takes them."""

__all__ = ["TABLES", "TableSpec"]
