"""The command that settles open points about BigQuery on an account."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pulso_etl.bigquery.source import build_source
from pulso_etl.bigquery.verify import MOST_BILLED, MOST_QUERIES, MOST_USD, POINTS, Point, Record, verify
from pulso_etl.cli.terminal import TenantOption, say, served_settings
from pulso_etl.sync.errors import SettingsError
from pulso_etl.tenancy.tenants import chosen

RECORD = Path("verify-source.json")


def verify_source(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before the account is used.")] = False,
    output: Annotated[Path, typer.Option("--output", help="The file of the record, which must not exist.")] = RECORD,
    name_project: Annotated[bool, typer.Option("--name-project", help="Write the project's name into the record.")] = False,
    tenant: TenantOption = None,
) -> None:
    """Asks BigQuery what its documentation leaves open, and writes a record. Costs less than a US cent, and asks before."""
    settings, _ = chosen(served_settings(), tenant)
    if output.exists():
        raise SettingsError(f"{output} exists; name another file with --output")
    with build_source(settings).get_client() as client:
        double = bool(settings.bigquery_emulator_host)
        say(
            f"{len(POINTS)} points are asked for in {'the emulator' if double else f'project {client.project}'}. A dataset "
            "pulso_verify_… is made for it and deleted at the end; nothing else is read or changed."
        )
        say(
            "the emulator costs nothing"
            if double
            else f"at most {MOST_QUERIES} queries of at most {MOST_BILLED // 2**20} MiB: less than {MOST_USD:.4f} USD on demand"
        )
        if not yes and not typer.confirm("Go on?"):
            raise typer.Exit(1)
        record = verify(client, "double" if double else "bigquery", _tell)
        if name_project:
            record = replace(record, project=client.project)
    output.write_text(record.as_json(), encoding="utf-8")
    _sum_up(record, output)
    if record.faults:
        raise typer.Exit(1)


def _tell(point: Point, answer: str) -> None:
    say(f"{point.question} {answer}")


def _sum_up(record: Record, output: Path) -> None:
    for name, (rule, answer) in record.differences.items():
        say(f"differs from the rule of the double: {name}: {answer!r}, not {rule!r}")
    say(f"{len(record.answers)} answers, {len(record.differences)} other than the rules, {len(record.faults)} failed: {output}")
