"""The servers of the tests' own process end with what they serve."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pulso_etl_tests.serving import serving


def test_a_server_ends_also_if_the_test_fails() -> None:
    before = {*threading.enumerate()}

    def fail() -> None:
        with serving(HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)):
            assert {*threading.enumerate()} - before
            raise ValueError("the test fails")

    with pytest.raises(ValueError, match="the test fails"):
        fail()
    assert {*threading.enumerate()} - before == set()
