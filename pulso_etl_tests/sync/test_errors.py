"""The tree of errors and their causes."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import pulso_etl
from pulso_etl.sync.errors import Cause, PulsoError, cause_of

NOT_RAISED = {Cause.UNAUTHORIZED, Cause.RATE_LIMITED, Cause.CANCELLED, Cause.ABANDONED, Cause.UNKNOWN}
"""Causes that no error of ours carries: the API answers with the first two, and the ledger tells the others."""


def everywhere(base: type[BaseException]) -> Iterator[type[BaseException]]:
    for kind in base.__subclasses__():
        yield kind
        yield from everywhere(kind)


def ours(base: type[BaseException]) -> set[type[BaseException]]:
    return {kind for kind in everywhere(base) if kind.__module__.startswith("pulso_etl.")}


@pytest.fixture(scope="module", autouse=True)
def whole_package() -> None:
    for module in pkgutil.walk_packages(pulso_etl.__path__, "pulso_etl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def test_every_error_of_the_package_is_in_the_tree() -> None:
    assert ours(BaseException) == ours(PulsoError) | {PulsoError}


def test_every_cause_has_an_error_that_carries_it_or_is_told_by_others() -> None:
    carried = {kind.cause for kind in everywhere(PulsoError) if issubclass(kind, PulsoError)}
    assert carried | NOT_RAISED == set(Cause)
    assert not carried & NOT_RAISED


@pytest.mark.parametrize(
    ("error", "cause"),
    [(ValueError("no"), Cause.INTERNAL), (KeyboardInterrupt(), Cause.CANCELLED), (PulsoError("no"), Cause.INTERNAL)],
)
def test_errors_of_others_have_a_cause_too(error: BaseException, cause: Cause) -> None:
    assert cause_of(error) is cause


def test_what_passes_by_itself_follows_from_the_cause() -> None:
    lasting = {cause for cause in Cause if not cause.retryable}
    assert {Cause.CONTRACT, Cause.SHRINK, Cause.BUDGET, Cause.COST_CAP, Cause.SOURCE_ACCESS, Cause.SETTINGS} <= lasting
    assert lasting.isdisjoint({Cause.SOURCE_UNAVAILABLE, Cause.DESTINATION_UNAVAILABLE, Cause.LOCKED, Cause.TIMEOUT})
