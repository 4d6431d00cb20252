"""The pages that follow from the declarations: `make docs` writes them, and a test says whether they are current.

These are the parts of README and docs between `<!-- tables -->` and `<!-- end -->`, docs/columns.md, and the API's document for
the TypeScript client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pulso_etl.api.openapi import document
from pulso_etl.bigquery.verify import POINTS, Record
from pulso_etl.sync.spec import Column, TableSpec
from pulso_etl.tables import TABLES

ROOT = Path(__file__).parents[1]
RECORDS = Path(__file__).parent / "bigquery" / "records"
"""The records of `pulso-etl verify-source`."""
PART = re.compile(r"(?<=<!-- tables -->\n\n).*?(?=\n<!-- end -->)", re.DOTALL)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def overview(tables: Mapping[str, TableSpec]) -> str:
    """The tables as README shows them."""
    header = ("table", "primary key", "lookback", "refreshed every", "time-out", "source")
    return table(
        header,
        (
            (
                f"`{spec.name}`",
                ", ".join(spec.primary_key),
                f"{spec.schedule.lookback_days} days",
                f"{spec.schedule.refresh_every.total_seconds() / 3600:g} h",
                f"{spec.loading.timeout.total_seconds() / 60:g} min",
                ", ".join(f"`{source}`" for source in sorted(spec.sources, reverse=True)),
            )
            for spec in tables.values()
        ),
    )


def minimum_rows(tables: Mapping[str, TableSpec]) -> str:
    """The `minimum_records` of each table, as docs/checks.md shows them."""
    return table(
        ("table", "`minimum_records`"), ((f"`{spec.name}`", str(spec.quality.minimum_records)) for spec in tables.values())
    )


def limits(column: Column) -> str:
    """The limits of a column's values, if it has any."""
    if column.minimum is not None and column.maximum is not None:
        return f"{column.minimum:g} to {column.maximum:g}"
    if column.minimum is not None:
        return f"from {column.minimum:g}"
    return "" if column.maximum is None else f"up to {column.maximum:g}"


def figures(spec: TableSpec) -> str:
    """The figures of the table, if it has any."""
    rows = [
        (
            f"`{one.name}`",
            one.title,
            one.unit.value,
            one.adds.value,
            ", ".join(f"`{name}`" for name in one.of),
            "yes" if one.over_days else "no",
        )
        for one in spec.figures
    ]
    return "\n" + table(("figure", "title", "unit", "made by", "of", "days add up"), rows) if rows else ""


def columns(tables: Mapping[str, TableSpec]) -> str:
    """The page docs/columns.md."""
    parts = [
        "# Columns\n\nEvery column and every figure of every table, as its declaration says. The names are the source's. "
        "`make docs` writes this page.\n"
    ]
    for spec in tables.values():
        rows = [
            (
                f"`{column.name}`" + (" (key)" if column.name in spec.primary_key else ""),
                column.sql_type,
                column.unit or "",
                limits(column),
                column.description,
            )
            for column in spec.columns
        ]
        described = table(("column", "type", "unit", "limits", "what it is"), rows)
        parts.append(f"## {spec.name}\n\n{spec.description}\n\n{described}{figures(spec)}")
    return "\n".join(parts)


def client_tables(tables: Mapping[str, TableSpec]) -> str:
    """What the TypeScript client knows of the tables without asking a server, a line for each."""
    entries = (
        {"table": one.name, "group": one.group, "refresh_every_seconds": int(one.schedule.refresh_every.total_seconds())}
        for one in tables.values()
    )
    return "[\n" + ",\n".join(f"  {{ {json.dumps(entry)[1:-1]} }}" for entry in entries) + "\n]\n"


def open_points() -> str:
    """What is a rule of the double, and what was seen on an account, as docs/source-changes.md shows it."""
    seen = [record for record in map(Record.read, sorted(RECORDS.glob("*.json"))) if record.against == "bigquery"]
    rows = [
        (
            point.question,
            json.dumps(point.rule),
            ", ".join(json.dumps(record.answers[point.name]) for record in seen if point.name in record.answers) or "not yet",
        )
        for point in POINTS
    ]
    return table(("open point", "rule of the double", "seen on an account"), rows)


def generated(tables: Mapping[str, TableSpec] = TABLES) -> dict[Path, str]:
    """Each file with its text as it should be."""
    parts = {
        ROOT / "README.md": overview(tables),
        ROOT / "docs" / "checks.md": minimum_rows(tables),
        ROOT / "docs" / "source-changes.md": open_points(),
    }
    pages = {path: PART.sub(lambda _, part=part: part, path.read_text(encoding="utf-8"), count=1) for path, part in parts.items()}
    return pages | {
        ROOT / "docs" / "columns.md": columns(tables),
        ROOT / "frontend" / "openapi.json": document(),
        ROOT / "frontend" / "src" / "tables.json": client_tables(tables),
    }


def main() -> None:
    """Writes the files that are not current, and prints their names."""
    for path, text in generated().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
