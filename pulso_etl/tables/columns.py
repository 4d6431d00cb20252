"""Columns that several tables share, and short constructors for the rest."""

from __future__ import annotations

from importlib.resources import files

from pulso_etl.sync.spec import Column, ColumnType


def query(table: str) -> str:
    """The text of the table's `.sql` file beside its module."""
    return files(__package__).joinpath(f"{table}.sql").read_text(encoding="utf-8")


def text(name: str, description: str) -> Column:
    return Column(name=name, type=ColumnType.TEXT, description=description)


def count(name: str, description: str, *, required: bool = False) -> Column:
    """A number of things. `required`: the query itself counts them, so the number cannot be missing."""
    return Column(name=name, type=ColumnType.INTEGER, description=description, minimum=0, required=required, expected=not required)


def money(name: str, description: str, *, minimum: int | None = None, expected: bool = True) -> Column:
    """An amount in soles: exact, never a float. It may be negative (a returned payment, an overpaid debt), with a warning."""
    return Column(
        name=name,
        type=ColumnType.NUMERIC,
        description=description,
        unit="PEN",
        minimum=minimum,
        expected=expected,
        expected_minimum=0 if minimum is None else None,
    )


def share(name: str, description: str) -> Column:
    """A part of a whole, in percent (0 to 100): it counts some of what the denominator counts. Null if the denominator is 0."""
    return Column(name=name, type=ColumnType.DOUBLE, description=description, unit="percent", minimum=0, maximum=100)


def ratio(name: str, description: str) -> Column:
    """One count divided by another, in percent. More than 100 is unusual but possible: the first need not be part of the second."""
    return Column(name=name, type=ColumnType.DOUBLE, description=description, unit="percent", minimum=0, expected_maximum=100)


FECHA_FOTO = Column(name="fecha_foto", type=ColumnType.DATE, description="Snapshot date (a day of the deployment's time zone)")
ARCHIVO = text("archivo", "Campaign file")
CARTERA = text("cartera", "Portfolio")
SERVICIO = text("servicio", "Service: FIJA or MOVIL")
FECHA_PROCESAMIENTO = Column(name="fecha_procesamiento", type=ColumnType.TIMESTAMP, description="When the source computed the row")
