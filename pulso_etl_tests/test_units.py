"""How the tests are dealt out to workers."""

from __future__ import annotations

import pytest

from pulso_etl_tests.conftest import UNIT, UNITS, file_of

SHARED = ("package", "session")
DEPLOYMENTS = ("stack", "dagster_stack")


def test_a_file_that_shares_a_deployment_is_in_a_unit(request: pytest.FixtureRequest) -> None:
    alone = set()
    for item in request.session.items:
        found = getattr(item, "_fixtureinfo", None)
        for name in DEPLOYMENTS:
            for fixture in found.name2fixturedefs.get(name, ())[-1:] if found else ():
                if fixture.scope in SHARED and file_of(item.nodeid) not in UNIT:
                    alone.add(file_of(item.nodeid))
    assert alone == set(), "add it to a unit in conftest.py, or each worker may start a deployment for it"


def test_every_file_of_a_unit_exists_and_is_in_one(pytestconfig: pytest.Config) -> None:
    assert [file for file in UNIT if not (pytestconfig.rootpath / file).is_file()] == []
    assert len(UNIT) == sum(len(files) for files in UNITS)
