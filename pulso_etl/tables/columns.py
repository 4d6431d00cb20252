"""Columns that several tables share, and short constructors for the rest."""

from __future__ import annotations

from importlib.resources import files

from pulso_etl.tables.spec import Column, ColumnType


def query(table: str) -> str:
    """The text of the table's `.sql` file, which stands beside its module."""
    return files(__package__).joinpath(f"{table}.sql").read_text(encoding="utf-8")


def text(name: str, description: str) -> Column:
    return Column(name=name, type=ColumnType.TEXT, description=description)


def count(name: str, description: str) -> Column:
    return Column(name=name, type=ColumnType.INTEGER, description=description, minimum=0)


def money(name: str, description: str) -> Column:
    """An amount in soles: exact, never a float."""
    return Column(name=name, type=ColumnType.NUMERIC, description=description, unit="PEN")


def ratio(name: str, description: str, unit: str = "percent") -> Column:
    return Column(name=name, type=ColumnType.DOUBLE, description=description, unit=unit)


FECHA_FOTO = Column(name="fecha_foto", type=ColumnType.DATE, description="Snapshot date (a day of America/Lima)")
ARCHIVO = text("archivo", "Campaign file")
CARTERA = text("cartera", "Portfolio")
SERVICIO = text("servicio", "Service: FIJA or MOVIL")
FECHA_PROCESAMIENTO = Column(name="fecha_procesamiento", type=ColumnType.TIMESTAMP, description="When the source computed the row")
