"""What the image leaves out."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from pulso_etl_tests.deploy.files import DEPLOY, ROOT

sys.path.insert(0, str(DEPLOY))
from slim import size, slim


def write(file: Path, text: str = "0123456789") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_what_nothing_imports_goes_and_the_rest_stays(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    gone = [
        "pandas/tests/io/test_x.py",
        "pyarrow/libarrow_flight.so.26",
        "pyarrow/include/a.h",
        "kubernetes/aio/client.py",
        "numpy/x.pyi",
    ]
    stay = [
        "pandas/testing.py",
        "pyarrow/libarrow.so.26",
        "pyarrow/libarrow_python.so.26",
        "kubernetes/client/api.py",
        "apprise/testing.py",
    ]
    for name in gone + stay:
        write(packages / name)
    assert slim(tmp_path) == 10 * len(gone)
    assert {one.relative_to(packages).as_posix() for one in packages.rglob("*") if one.is_file()} == set(stay)
    assert size(tmp_path) == 10 * len(stay)
    assert slim(tmp_path) == 0


def test_a_folder_that_is_no_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no lib/python3"):
        slim(tmp_path)


def test_the_image_is_slimmed_in_the_step_that_fills_it() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    (step,) = [one for one in dockerfile.split("\nRUN ") if "--require-hashes -r requirements.lock" in one and "slim.py" in one]
    assert "python slim.py /opt/pulso-etl" in step
    assert "deploy/slim.py" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_package_imports_nothing_of_what_goes() -> None:
    gone = re.compile(r"\b(pyarrow\.flight|S3FileSystem|kubernetes\.aio|googleapiclient)\b")
    assert [file for file in (ROOT / "pulso_etl").rglob("*.py") if gone.search(file.read_text(encoding="utf-8"))] == []
