"""docs/emulator-differences.md: what each query of the page gives in GoogleSQL and in the emulator."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from google.api_core.exceptions import GoogleAPIError

from pulso_etl.bigquery.analysis import StatementRefused
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl_tests.bigquery.evaluation import evaluate

PAGE = (Path(__file__).parents[2] / "docs" / "emulator-differences.md").read_text(encoding="utf-8")
PART = PAGE.partition("<!-- differences -->")[2].partition("<!-- end -->")[0]
QUERIES = re.findall(r"^\| `(SELECT [^`]+)` \|", PART, re.MULTILINE)
UNTRIED: dict[str, Any] = {"retry": None, "job_retry": None}
ERROR = "an error"
FOUND: list[tuple[Any, Any]] = [
    ([2], [1, 1]),
    ([Decimal("99999999999999999999.99")], ERROR),
    ([Decimal("0.15")], [0.15]),
    ([Decimal("1.500000002")], [Decimal("1.5000000015")]),
    ([Decimal("0.12345679")], [Decimal("0.123")]),
    ([2.67], [2.68]),
    ([3], [2]),
    (ERROR, [9223372036854775808]),
    (ERROR, [float("inf")]),
    (["1.5"], ["1.500000000"]),
    ([False], [True]),
]
"""The last column of each row, by GoogleSQL and by the emulator, in the page's order."""


def test_every_query_of_the_page_differs_as_the_page_says(emulator: BigQueryEmulator) -> None:
    client = emulator.client()

    def by_googlesql(query: str) -> Any:
        try:
            return [list(row.values())[-1] for row in evaluate(query, {}, {}, {})]
        except StatementRefused:
            return ERROR

    def by_emulator(query: str) -> Any:
        try:
            # Some errors come as a result without rows.
            return [row[-1] for row in client.query_and_wait(query, **UNTRIED)] or ERROR
        except GoogleAPIError:
            return ERROR

    found = [(by_googlesql(query), by_emulator(query)) for query in QUERIES]
    assert found == FOUND
    assert [type(one[0]) for one in found[2]] == [Decimal, float]
    with pytest.raises(StatementRefused, match="int64 overflow"):
        evaluate(QUERIES[7], {}, {}, {})
