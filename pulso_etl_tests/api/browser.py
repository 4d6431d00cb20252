"""Chromium for the tests of the page. As a program it takes the README's pictures of a page that is served:

python -m pulso_etl_tests.api.browser http://127.0.0.1:8000 docs/images
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PICTURES: dict[str, dict[str, Any]] = {
    "page": {"viewport": {"width": 1280, "height": 1640}, "color_scheme": "light", "device_scale_factor": 0.75},
    "page-dark-phone": {"viewport": {"width": 360, "height": 780}, "color_scheme": "dark"},
}


def find_chromium() -> str | None:
    """The path of an installed Chromium."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium(path: str) -> Iterator[Browser]:
    """Chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def take_pictures(url: str, folder: Path) -> None:
    """Writes a picture for each entry of PICTURES."""
    path = find_chromium()
    if path is None:
        sys.exit("no Chromium is installed (Debian: apt install chromium)")
    with chromium(path) as browser:
        for name, options in PICTURES.items():
            page = browser.new_page(**options, locale="es-PE", reduced_motion="reduce")
            page.goto(url)
            page.get_by_text("En vivo").wait_for()
            page.get_by_role("row", name="Tablero de cobranzas").wait_for()
            page.screenshot(path=folder / f"{name}.png")
            page.close()


if __name__ == "__main__":
    take_pictures(sys.argv[1], Path(sys.argv[2]))
