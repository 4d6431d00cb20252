"""The files of `deploy/`, and the programs that they may start."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import typer.main
import yaml
from celery.bin.celery import celery
from dagster._cli import create_dagster_cli
from dagster._daemon.cli import create_dagster_daemon_cli
from dagster_webserver.cli import dagster_webserver

from pulso_etl.cli.main import app
from pulso_etl.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SETTINGS = {name.upper() for name in Settings.model_fields}
PROGRAMS: dict[str, Callable[[], Any]] = {
    "pulso-etl": lambda: typer.main.get_command(app),
    "dagster": create_dagster_cli,
    "dagster-webserver": lambda: dagster_webserver,
    "dagster-daemon": create_dagster_daemon_cli,
    "celery": lambda: celery,
}


def load(path: str) -> Any:
    """The one document of a YAML file of `deploy/`."""
    return yaml.safe_load((DEPLOY / path).read_text(encoding="utf-8"))


def faults(words: Sequence[str]) -> Iterator[str]:
    """The words of a command line that are unknown: the program, a subcommand, or an option."""
    name, *rest = words
    if name not in PROGRAMS:
        yield f"unknown program {name}"
        return
    command = PROGRAMS[name]()
    while rest:
        word = rest.pop(0)
        option = next((one for one in command.params if word in (*one.opts, *one.secondary_opts)), None)
        if option is not None:
            if not getattr(option, "is_flag", False):
                rest = rest[1:]
        elif word.startswith("-"):
            yield f"{name} has no option {word}"
            return
        elif hasattr(command, "get_command"):
            found = command.get_command(click.Context(command), word)
            if found is None:
                yield f"{name} has no command {word}"
                return
            command = found


def variables(text: str) -> set[str]:
    """The names that a compose file takes from its environment."""
    return set(re.findall(r"(?<!\$)\$\{?([A-Z_]+)", text))


def environment_file(path: str) -> dict[str, str]:
    """The lines NAME=value of a file. Lines that are commented out count, too."""
    return dict(re.findall(r"^#?([A-Z][A-Z0-9_]+)=(.*)$", (DEPLOY / path).read_text(encoding="utf-8"), re.MULTILINE))
