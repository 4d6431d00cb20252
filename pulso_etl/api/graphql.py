"""Dagster's GraphQL behind a token: what a document may do is decided on the parsed document, never on its text.

Readers may query. The role `refresh` may also launch and cancel, with nothing but what Pulso ETL's own launches say. All else is
for administrators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    ListValueNode,
    Node,
    ObjectFieldNode,
    ObjectValueNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    StringValueNode,
    parse,
)
from graphql.language import Visitor, visit

from pulso_etl.api.tokens import Role
from pulso_etl.destination.io_manager import ALLOW_SHRINK_TAG

MAXIMUM_TOKENS = 4_000
MAXIMUM_DEPTH = 20
MAXIMUM_DOCUMENTS = 10
MAXIMUM_FIELDS = 2_000
"""Fields of a document with its fragments written out."""
LAUNCHES = {"launchRun", "launchPipelineExecution", "launchMultipleRuns", "launchPartitionBackfill"}
CANCELS = {"terminateRun", "terminateRuns", "terminatePipelineExecution", "cancelPartitionBackfill"}
RESERVED_ARGUMENTS = {"runConfigData"}
"""What a launch may give in Dagster and the role `refresh` may not: it could point a resource to another server."""
RESERVED_STRINGS = {ALLOW_SHRINK_TAG}
"""Tags of a launch that the role `refresh` may not give: they turn a guard off."""


class DocumentRefused(Exception):
    """The document can't be decided on: it is no GraphQL, or too large, or too deep."""


@dataclass(frozen=True)
class Verdict:
    """Which role a document needs, and how many launches it holds."""

    role: Role
    launches: int = 0
    mutations: tuple[str, ...] = ()


def decide(query: str, variables: Mapping[str, Any] | None) -> Verdict:
    """What the document needs, whichever of its operations is run. Raises DocumentRefused."""
    try:
        document = parse(query, no_location=True, max_tokens=MAXIMUM_TOKENS)
    except GraphQLError as error:
        raise DocumentRefused(f"the document can't be parsed: {error.message}") from None
    fragments = {node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)}
    operations = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
    if not operations:
        raise DocumentRefused("the document has no operation")
    role, launches, named = Role.READ, 0, []
    for operation in operations:
        _Measure(fragments).measure(operation.selection_set)
        if operation.operation is OperationType.QUERY:
            continue
        if operation.operation is OperationType.SUBSCRIPTION:
            raise DocumentRefused("subscriptions are not served here; ask again from time to time instead")
        fields = list(_root_fields(operation.selection_set, fragments))
        named += [field.name.value for field in fields]
        launches += sum(_launches(field, variables or {}) for field in fields)
        plain = all(field.name.value in LAUNCHES | CANCELS for field in fields)
        role = max(role, Role.REFRESH if plain and not _says_more(document, variables or {}) else Role.ADMIN)
    return Verdict(role, launches, tuple(named))


class _Measure:
    """Depth and size of a selection with its fragments written out; each fragment is measured once."""

    def __init__(self, fragments: Mapping[str, FragmentDefinitionNode]) -> None:
        self.fragments = fragments
        self.known: dict[str, tuple[int, int]] = {}
        self.open: set[str] = set()

    def measure(self, selection: SelectionSetNode | None) -> tuple[int, int]:
        """Levels and fields. Raises DocumentRefused."""
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
        if depth > MAXIMUM_DEPTH:
            raise DocumentRefused(f"the document is deeper than {MAXIMUM_DEPTH} levels")
        if fields > MAXIMUM_FIELDS:
            raise DocumentRefused(f"the document has more than {MAXIMUM_FIELDS} fields")
        return depth, fields

    def _fragment(self, name: str) -> tuple[int, int]:
        if name in self.open:
            raise DocumentRefused(f"the fragment {name} holds itself")
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


def _launches(field: FieldNode, variables: Mapping[str, Any]) -> int:
    if field.name.value not in LAUNCHES:
        return 0
    if field.name.value != "launchMultipleRuns":
        return 1
    # Whichever of the lists it is, in the document or in a variable: the longest counts.
    lists = [argument.value for argument in field.arguments if isinstance(argument.value, ListValueNode)]
    given = [value for value in variables.values() if isinstance(value, list)]
    return max([1, *(len(found.values) for found in lists), *(len(value) for value in given)])


class _Literals(Visitor):
    """Finds reserved names and strings among the values that stand in the document itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def enter_object_field(self, node: ObjectFieldNode, *_: Any) -> None:
        empty = isinstance(node.value, ObjectValueNode) and not node.value.fields
        self.found |= node.name.value in RESERVED_ARGUMENTS and not empty

    def enter_string_value(self, node: StringValueNode, *_: Any) -> None:
        self.found |= node.value.strip() in RESERVED_STRINGS


def _says_more(document: DocumentNode, variables: Mapping[str, Any]) -> bool:
    literals = _Literals()
    node: Node = document
    visit(node, literals)
    return literals.found or _reserved(variables)


def _reserved(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any((name in RESERVED_ARGUMENTS and bool(given)) or _reserved(given) for name, given in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return any(_reserved(entry) for entry in value)
    return isinstance(value, str) and value.strip() in RESERVED_STRINGS
