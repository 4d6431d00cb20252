"""Decides what a document of Dagster's GraphQL may do. It judges the parsed document, never the text.

Readers may query. The role `refresh` may also launch and cancel, with the arguments that `permits` allows. Everything else is for
administrators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from graphql import (
    BooleanValueNode,
    DocumentNode,
    EnumValueNode,
    FieldNode,
    FloatValueNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    ObjectValueNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    StringValueNode,
    ValueNode,
    VariableNode,
    parse,
)

from pulso_etl.access import permits
from pulso_etl.access.tokens import Role
from pulso_etl.sync.errors import RequestRefused

MAXIMUM_DOCUMENTS = 10
Arguments = Mapping[str, Any]
GENTLE = {None, "SAFE_TERMINATE"}
"""Policies of termination by which Dagster reports the end only after the run's process has ended."""


@dataclass(frozen=True)
class DocumentLimits:
    """Limits of a document: tokens, levels, and fields with its fragments expanded."""

    tokens: int
    depth: int
    fields: int


LIMITS = DocumentLimits(tokens=4_000, depth=20, fields=2_000)
UI_LIMITS = DocumentLimits(tokens=20_000, depth=60, fields=50_000)
"""Limits for the documents of Dagster's UI."""


class DocumentRefused(RequestRefused):
    """The document cannot be judged: it is not GraphQL, too large or too deep."""


@dataclass(frozen=True)
class Verdict:
    """The role that a document needs, the number of runs that it launches, and the runs and back-fills that it ends."""

    role: Role
    launches: int = 0
    mutations: tuple[str, ...] = ()
    runs_ended: tuple[str, ...] = ()
    backfills_ended: tuple[str, ...] = ()

    @property
    def counted(self) -> int:
        """Launches that count towards the caller's limit."""
        return self.launches + len(self.runs_ended) + len(self.backfills_ended)


def verdict_on(query: str, variables: Mapping[str, Any] | None, limits: DocumentLimits = LIMITS) -> Verdict:
    """What the document needs if any of its operations runs. Raises DocumentRefused and LaunchForbidden."""
    document = _parsed(query, limits)
    fragments = {node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)}
    found = Verdict(Role.READ)
    for operation in _operations(document, fragments, limits):
        if operation.operation is OperationType.QUERY:
            continue
        if operation.operation is OperationType.SUBSCRIPTION:
            raise DocumentRefused("this route has no subscriptions; send a query from time to time instead")
        known = _known(operation, variables or {})
        for field in _root_fields(operation.selection_set, fragments):
            found = _with(found, field.name.value, {one.name.value: _value(one.value, known) for one in field.arguments})
    return found


def is_subscription(query: str) -> bool:
    """Whether every operation of the document is a subscription. Raises DocumentRefused."""
    document = _parsed(query, UI_LIMITS)
    fragments = {node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)}
    return all(one.operation is OperationType.SUBSCRIPTION for one in _operations(document, fragments, UI_LIMITS))


def _parsed(query: str, limits: DocumentLimits) -> DocumentNode:
    try:
        return parse(query, no_location=True, max_tokens=limits.tokens)
    except GraphQLError as error:
        raise DocumentRefused(f"the document can't be parsed: {error.message}") from None
    except RecursionError:
        raise DocumentRefused("the document is too deep") from None


def _operations(
    document: DocumentNode, fragments: Mapping[str, FragmentDefinitionNode], limits: DocumentLimits
) -> list[OperationDefinitionNode]:
    operations = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
    if not operations:
        raise DocumentRefused("the document has no operation")
    for operation in operations:
        _Measure(fragments, limits).measure(operation.selection_set)
    return operations


def _with(found: Verdict, mutation: str, arguments: Arguments) -> Verdict:
    """The verdict with one more mutation."""
    role, launches = Role.READ if mutation in HARMLESS else Role.ADMIN, 0
    runs: tuple[str, ...] = ()
    backfills: tuple[str, ...] = ()
    if mutation in LAUNCHES:
        role, launches = LAUNCHES[mutation](arguments)
    elif mutation in ENDS:
        runs = permits.texts(arguments.get(ENDS[mutation]))
        role = Role.REFRESH if arguments.get("terminatePolicy") in GENTLE else Role.ADMIN
    elif mutation == "cancelPartitionBackfill":
        role, backfills = Role.REFRESH, permits.texts(arguments.get("backfillId"))
    return Verdict(
        max(found.role, role),
        found.launches + launches,
        (*found.mutations, mutation),
        (*found.runs_ended, *runs),
        (*found.backfills_ended, *backfills),
    )


def _launch(arguments: Arguments) -> tuple[Role, int]:
    return permits.role_of_launch(arguments.get("executionParams")), 1


def _launch_many(arguments: Arguments) -> tuple[Role, int]:
    given = permits.items(arguments.get("executionParamsList")) or [None]
    return max(map(permits.role_of_launch, given)), len(given)


def _launch_backfill(arguments: Arguments) -> tuple[Role, int]:
    return permits.role_of_backfill(arguments.get("backfillParams")), 1


def _launch_again(arguments: Arguments) -> tuple[Role, int]:
    return permits.role_of_reexecution(arguments.get("executionParams"), arguments.get("reexecutionParams")), 1


LAUNCHES: Mapping[str, Callable[[Arguments], tuple[Role, int]]] = {
    "launchRun": _launch,
    "launchPipelineExecution": _launch,
    "launchMultipleRuns": _launch_many,
    "launchPartitionBackfill": _launch_backfill,
    "launchRunReexecution": _launch_again,
    "launchPipelineReexecution": _launch_again,
    "reexecutePartitionBackfill": _launch_again,
}
"""Mutations that launch: the role that the arguments need, and the number of runs. A back-fill counts as one."""
HARMLESS = {"setNuxSeen", "logTelemetry"}
"""Mutations that Dagster's UI sends by itself: its greeting was seen, and clicks if telemetry is on."""
ENDS = {"terminateRun": "runId", "terminateRuns": "runIds", "terminatePipelineExecution": "runId"}
"""Mutations that end runs, with the argument that names the runs."""


class _Measure:
    """Depth and size of a selection with its fragments expanded. Each fragment is measured once."""

    def __init__(self, fragments: Mapping[str, FragmentDefinitionNode], limits: DocumentLimits) -> None:
        self.fragments = fragments
        self.limits = limits
        self.known: dict[str, tuple[int, int]] = {}
        self.open: set[str] = set()

    def measure(self, selection: SelectionSetNode | None) -> tuple[int, int]:
        """The number of levels and of fields. Raises DocumentRefused."""
        depth = fields = 0
        for node in selection.selections if selection else ():
            if isinstance(node, FragmentSpreadNode):
                levels, more = self._fragment(node.name.value)
            else:
                assert isinstance(node, FieldNode | InlineFragmentNode)
                levels, more = self.measure(node.selection_set)
                if isinstance(node, FieldNode):
                    levels, more = levels + 1, more + 1
            depth, fields = max(depth, levels), fields + more
        if depth > self.limits.depth:
            raise DocumentRefused(f"the document is deeper than {self.limits.depth} levels")
        if fields > self.limits.fields:
            raise DocumentRefused(f"the document has more than {self.limits.fields} fields")
        return depth, fields

    def _fragment(self, name: str) -> tuple[int, int]:
        if name in self.open:
            raise DocumentRefused(f"the fragment {name} contains itself")
        if name not in self.fragments:
            raise DocumentRefused(f"the fragment {name} is not in the document")
        if name not in self.known:
            self.open.add(name)
            self.known[name] = self.measure(self.fragments[name].selection_set)
            self.open.remove(name)
        return self.known[name]


def _root_fields(selection: SelectionSetNode, fragments: Mapping[str, FragmentDefinitionNode]) -> Iterable[FieldNode]:
    for node in selection.selections:
        if isinstance(node, FieldNode):
            yield node
        elif isinstance(node, InlineFragmentNode):
            yield from _root_fields(node.selection_set, fragments)
        elif isinstance(node, FragmentSpreadNode):
            yield from _root_fields(fragments[node.name.value].selection_set, fragments)


def _known(operation: OperationDefinitionNode, variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of the operation's variables, defaults included."""
    defaults = {one.variable.name.value: one.default_value for one in operation.variable_definitions}
    return {name: _value(value, {}) for name, value in defaults.items() if value is not None} | dict(variables)


def _value(node: ValueNode, known: Mapping[str, Any]) -> Any:
    """The value as Dagster gets it. Variables have their values; a field is left out if its variable has no value."""
    match node:
        case VariableNode():
            return known.get(node.name.value, permits.UNDEFINED)
        case StringValueNode() | EnumValueNode() | BooleanValueNode():
            return node.value
        case IntValueNode() | FloatValueNode():
            return float(node.value)
        case ListValueNode():
            return [_value(entry, known) for entry in node.values]
        case ObjectValueNode():
            return {field.name.value: _value(field.value, known) for field in node.fields}
    return None
