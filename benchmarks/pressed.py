"""Measures seconds from a press of the page's button to the page that shows the table as refreshed, in a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page

from benchmarks.launch import TABLE, free_ports, without_variables
from benchmarks.loads import ROOT, Say
from pulso_etl.tables import TABLES
from pulso_etl_tests.api.browser import chromium, find_chromium

PAGE = re.compile(r"^Page and API: (\S+)$", re.MULTILINE)
TITLE = TABLES[TABLE].title


def measure_presses(home: Path, repeats: int, *, timeout: float, say: Say) -> list[float]:
    """Seconds of each press. All servers are up, and the table has been refreshed by a press before.

    Raises RuntimeError if there is no Chromium, or if the servers do not start. Raises playwright's TimeoutError if the page does
    not show the end of the refresh.
    """
    path = find_chromium()
    if path is None:
        raise RuntimeError("no Chromium is installed (Debian: apt install chromium)")
    say("presses: starting the embedded default with Dagster and the page")
    with (
        without_variables("DATABASE_URL", "DATABASE_SCHEMA", "DAGSTER_POSTGRES_URL", "API_TOKENS"),
        dev(home, timeout) as url,
        chromium(path) as browser,
    ):
        page = browser.new_page(locale="es-PE")
        page.goto(url)
        page.get_by_label("Aunque estén frescas").check()
        press(page, timeout)
        seconds = []
        for repeat in range(repeats):
            time.sleep(2)  # the servers come to rest
            seconds.append(press(page, timeout))
            say(f"presses: {repeat + 1} of {repeats}: {seconds[-1]:.2f} s")
    return seconds


def press(page: Page, timeout: float) -> float:
    """Seconds from the press of the table's button until the page tells that the table is refreshed."""
    told = page.locator("p[role=status]", has_text=f"{TITLE}: actualizado.")
    began = time.perf_counter()
    page.get_by_role("button", name=f"Actualizar {TITLE}").first.click()
    told.wait_for(state="detached", timeout=timeout * 1000)  # what the page told of the press before
    told.wait_for(state="attached", timeout=timeout * 1000)
    return time.perf_counter() - began


@contextmanager
def dev(home: Path, timeout: float) -> Iterator[str]:
    """A running `pulso-etl dev` whose five tables are loaded. Yields the address of its page, with a token."""
    port, api_port = free_ports(2)
    options = ["--home", str(home), "--port", str(port), "--api-port", str(api_port)]
    log = home.parent / "dev.log"
    with log.open("wb") as output:
        child = subprocess.Popen([sys.executable, "-m", "pulso_etl", "dev", *options], cwd=ROOT, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + timeout
        while not (found := PAGE.search(log.read_text(encoding="utf-8"))):
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"`pulso-etl dev` did not start:\n{log.read_text(encoding='utf-8')[-2000:]}")
            time.sleep(0.2)
        yield found[1]
    finally:
        child.terminate()
        child.wait(60)
