"""Tables as a component of Dagster: `dg scaffold defs pulso_etl.SyncedTable NAME` writes one, and `dg` knows its fields."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from string import Template
from typing import Annotated, Any

import dagster as dg
from dagster.components import Scaffolder, ScaffoldRequest
from pydantic import BaseModel, ConfigDict, WithJsonSchema, create_model

from pulso_etl.sync.spec import PARTS, TableSpec
from pulso_etl.table_files import ELSEWHERE, FILES, read_table, table_file

QUERY = """\
SELECT
  fecha_gestion AS fecha_foto,
  canal_origen AS canal,
  COUNT(*) AS total_gestiones
FROM `{gestiones_unificadas}`
WHERE fecha_gestion BETWEEN @start AND @end
GROUP BY fecha_foto, canal
"""
DECLARATION = Template("""\
type: $type

attributes:
  description: Contact attempts by day and channel.
  title: ""  # what its readers call it; the page and alerts show it
  primary_key: [fecha_foto, canal]
  partition_column: fecha_foto
  columns:  # what $name.sql returns, by name and type
    - {name: fecha_foto, type: date, description: Day of the attempts}
    - {name: canal, type: text, description: "Channel: BOT or HUMANO"}
    - {name: total_gestiones, type: bigint, description: Contact attempts, required: true, minimum: 0}
  group: operation
  schedule:
    lookback_days: 2
    refresh_every: PT2H
""")
"""What a new table begins with: a table that can be loaded, to be changed."""


DURATION = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}], "description": "PT2H, 02:00:00, or seconds"})
"""YAML reads 02:00:00 as a number of seconds."""


def _fields(kind: type[BaseModel], *left_out: str, **instead: Any) -> type[BaseModel]:
    """A model of the kind's fields, without its checks."""
    fields = {
        name: (Annotated[field.annotation, DURATION] if field.annotation is timedelta else field.rebuild_annotation(), field)
        for name, field in kind.model_fields.items()
        if name not in left_out
    }
    config = ConfigDict(extra="forbid")
    return create_model(kind.__name__, __config__=config, __doc__=kind.__doc__, **(fields | instead))


_parts = {name: _fields(kind, "query") for name, kind in PARTS.items()}
Attributes = _fields(TableSpec, *ELSEWHERE, **{name: (kind, kind()) for name, kind in _parts.items()})
"""What `attributes` of a table's file can have. The declaration itself says what fits together (see `read_table`)."""


class SyncedTableScaffolder(Scaffolder):
    """Writes `defs.yaml` and the `.sql` file of a new table."""

    def scaffold(self, request: ScaffoldRequest) -> None:
        """Raises ValueError if the table is to be declared in another way."""
        if request.append or request.scaffold_format != "yaml":
            raise ValueError("a table has a folder of its own with defs.yaml; in Python it is a module: see README.md")
        name = request.target_path.name
        (request.target_path / FILES[0]).write_text(DECLARATION.substitute(type=request.type_name, name=name), encoding="utf-8")
        (request.target_path / f"{name}.sql").write_text(QUERY, encoding="utf-8")


@dg.scaffold_with(SyncedTableScaffolder)
@dataclass
class SyncedTable(dg.Component):
    """A table of PostgreSQL that is kept equal to a query of BigQuery: the text of the `.sql` file beside `defs.yaml`."""

    spec: TableSpec

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        return Attributes

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> SyncedTable:
        """Raises SettingsError, with file and line."""
        # The file is read as all processes read it. Its attributes are here checked by their schema only.
        return cls(read_table(table_file(Path(context.path))))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """What a project that loads its folder of definitions itself gets of the table (see `definitions.build_table`)."""
        # The import reads every table. One that is wrong must not keep Dagster's tools from telling so.
        from pulso_etl.definitions import build_table

        return build_table(self.spec)


__all__ = ["SyncedTable"]
