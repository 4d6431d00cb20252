"""Tables that are declared in YAML: a folder with `defs.yaml`, as Dagster's components have it, and the `.sql` file of the query.

Nothing here imports Dagster: every process reads the tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from pulso_etl.sync.errors import SettingsError
from pulso_etl.sync.spec import TableSpec, UnknownFieldsError

NAMES = ("pulso_etl.SyncedTable", "pulso_etl.components.SyncedTable")
"""How a file names Dagster's component of a table."""
FILES = ("defs.yaml", "defs.yml")
KNOWN = ("type", "attributes", "requirements")
ELSEWHERE = {
    "name": "the table has the name of its folder",
    "tenant": "the file of tenants sets it",
    "timezone": "the setting TIMEZONE, or the file of tenants, sets it",
}
"""Fields of a declaration that a file can't have, and what says them."""
TEMPLATE = "{{"
"""The beginning of a template of Dagster. All processes know the same tables, whatever their environments are."""

Path_ = tuple[str | int, ...]
"""Where a value stands in a document, by keys and indexes from the outside in."""


class StrictLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML that refuses a key that is given twice, because the second would silently replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


class Fault(NamedTuple):
    """What is wrong with the value at `path`."""

    path: Path_
    text: str


class Document(NamedTuple):
    """The only document of a file."""

    file: Path
    node: yaml.Node
    value: Any

    @classmethod
    def read(cls, file: Path) -> Document:
        """Raises SettingsError if the file can't be read, or is not one YAML document."""
        try:
            loader = StrictLoader(file.read_text(encoding="utf-8"))
            node = loader.get_single_node()
            return cls(file, node, loader.construct_document(node) if node is not None else None)
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{_shown(file)} can't be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
        except yaml.YAMLError as error:
            mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
            where = f"{_shown(file)}:{mark.line + 1}" if mark else _shown(file)
            raise SettingsError(f"{where}: {problem or 'is not YAML'}") from None

    def line(self, path: Path_) -> int:
        """The line of the value, or of the nearest value around it that the document has; from 1."""
        node, line = self.node, 1 if self.node is None else self.node.start_mark.line + 1
        for part in path:
            found = _child(node, part)
            if found is None:
                break
            line, node = found
        return line

    def error(self, faults: Sequence[Fault]) -> SettingsError:
        """The faults, a line each, with file and line."""
        return SettingsError("\n".join(f"{_shown(self.file)}:{self.line(fault.path)}: {fault.text}" for fault in faults))


def table_files(root: Path) -> list[Path]:
    """The files below the folder that declare tables."""
    return sorted(file for name in FILES for file in root.rglob(name))


def table_file(folder: Path) -> Path:
    """The file of the folder that declares its table. Raises SettingsError if there is none."""
    for name in FILES:
        if (folder / name).exists():
            return folder / name
    raise SettingsError(f"{_shown(folder)} has no {FILES[0]}")


def read_table(file: Path) -> TableSpec:
    """The table that the file declares.

    Raises SettingsError: a line for each fault, with file and line.
    """
    document, name = Document.read(file), file.parent.name
    if faults := [*_misfits(document, name)]:
        raise document.error(faults)
    attributes = dict(document.value["attributes"])
    source = attributes.get("source", {})
    if isinstance(source, Mapping):
        attributes["source"] = dict(source) | {"query": _query(file, name).read_text(encoding="utf-8")}
    try:
        return TableSpec.model_validate(attributes | {"name": name})
    except ValidationError as error:
        raise document.error([*_faults(error)]) from None


def _query(file: Path, name: str) -> Path:
    return file.with_name(f"{name}.sql")


def _misfits(document: Document, name: str) -> Iterator[Fault]:
    """What no declaration of a table can have."""
    given = document.value
    if not isinstance(given, Mapping) or not isinstance(attributes := given.get("attributes"), Mapping):
        yield Fault(("attributes",), f"a table needs type: {NAMES[0]}, and attributes")
        return
    if given.get("type") not in NAMES:
        yield Fault(("type",), f"type: {given.get('type')}; a table is {NAMES[0]}, and this folder is for tables")
    for key in given.keys() - {*KNOWN}:
        yield Fault((key,), f"{key}: a table has no such part; it has {', '.join(KNOWN)}")
    for field, where in ELSEWHERE.items():
        if field in attributes:
            yield Fault(("attributes", field), f"{field}: {where}")
    query = _query(document.file, name)
    if isinstance(source := attributes.get("source"), Mapping) and "query" in source:
        yield Fault(("attributes", "source", "query"), f"source.query: the query is the text of {query.name}")
    if not query.is_file():
        yield Fault((), f"there is no {query.name} beside it; its text is the query")
    for path in _templates(attributes, ("attributes",)):
        yield Fault(path, f"{_dotted(path)}: a table takes no {TEMPLATE} … }}}}, because it is the same in every process")


def _templates(value: Any, path: Path_) -> Iterator[Path_]:
    """Where texts have templates."""
    if isinstance(value, str):
        if TEMPLATE in value:
            yield path
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _templates(one, (*path, key))
    elif isinstance(value, Sequence):
        for index, one in enumerate(value):
            yield from _templates(one, (*path, index))


def _faults(error: ValidationError) -> Iterator[Fault]:
    """Each fault, with where it stands."""
    for fault in error.errors(include_url=False, include_input=False):
        path, cause = ("attributes", *fault["loc"]), fault.get("ctx", {}).get("error")
        if fault["loc"] == ("name",):
            yield Fault((), f"the table has the name of its folder, which fits no table: {fault['msg']}")
        elif isinstance(cause, UnknownFieldsError):
            yield Fault((*path, cause.names[0]), str(cause))
        else:
            # A check of ours says by itself what it is about.
            yield Fault(path, str(cause) if isinstance(cause, ValueError) else f"{_dotted(path)}: {fault['msg']}")


def _dotted(path: Path_) -> str:
    return ".".join(str(part) for part in path[1:])


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    """The line of the key or entry, and its value."""
    if isinstance(node, yaml.MappingNode):
        return next(((key.start_mark.line + 1, value) for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


def _shown(file: Path) -> str:
    """The path as a person in the working directory writes it."""
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)
