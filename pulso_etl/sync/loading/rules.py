"""The checks that follow from a table's declaration, and the rules for its rows. They look at no data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from psycopg import sql

from pulso_etl.sync.spec import TableSpec


class Check(StrEnum):
    """The asset checks, by name."""

    PRIMARY_KEY = "primary_key"
    REQUIRED_COLUMNS = "required_columns"
    VALUE_LIMITS = "value_limits"
    EXPECTED_VALUES = "expected_values"
    MINIMUM_RECORDS = "minimum_records"
    VOLUME = "volume"
    RECONCILIATION = "reconciliation"
    UP_TO_DATE = "up_to_date"


@dataclass(frozen=True)
class Rule:
    """A rule for every row. Without a limit, the value in `column` is not null.

    With a limit, the value is not below it (if `below` is true) or not above it (if `below` is false).
    """

    check: Check
    column: str
    limit: int | None = None
    below: bool = False

    @property
    def fault(self) -> str:
        """The fault of the column in a row that breaks the rule."""
        return "null" if self.limit is None else f"{'below' if self.below else 'above'} {self.limit}"

    @property
    def broken(self) -> sql.Composed:
        """The condition for rows that break the rule."""
        name = sql.Identifier(self.column)
        if self.limit is None:
            return sql.SQL("{} IS NULL").format(name)
        return sql.SQL("{} {} {}").format(name, sql.SQL("<" if self.below else ">"), sql.Literal(self.limit))


def rules(spec: TableSpec) -> tuple[Rule, ...]:
    """The rules that the declaration sets for single rows."""
    found: list[Rule] = []
    for column in spec.columns:
        if column.name in spec.primary_key:
            found.append(Rule(Check.PRIMARY_KEY, column.name))
        elif spec.required(column):
            found.append(Rule(Check.REQUIRED_COLUMNS, column.name))
        elif column.expected:
            found.append(Rule(Check.EXPECTED_VALUES, column.name))
        for check, minimum, maximum in (
            (Check.VALUE_LIMITS, column.minimum, column.maximum),
            (Check.EXPECTED_VALUES, column.expected_minimum, column.expected_maximum),
        ):
            found += [
                Rule(check, column.name, limit, below) for limit, below in ((minimum, True), (maximum, False)) if limit is not None
            ]
    return tuple(found)


def refresh_checks(spec: TableSpec) -> list[Check]:
    """The checks of the rows that are part of every refresh of the table."""
    by_rule = {rule.check for rule in rules(spec)}
    by_column = (Check.REQUIRED_COLUMNS, Check.VALUE_LIMITS, Check.EXPECTED_VALUES)
    found = [Check.PRIMARY_KEY, *(check for check in by_column if check in by_rule)]
    if spec.quality.minimum_records:
        found.append(Check.MINIMUM_RECORDS)
    # If only the newest version of a key is kept, older partitions become empty, so their rows prove nothing.
    if spec.partition_in_key:
        found.append(Check.VOLUME)
    return found
