"""What the image leaves out, and that the rest works without it."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pyarrow
import pytest

import pulso_etl
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.settings import Settings
from pulso_etl_tests.clock import TODAY
from pulso_etl_tests.conftest import seed
from pulso_etl_tests.deploy.files import DEPLOY, ROOT

sys.path.insert(0, str(DEPLOY))
from slim import COMPILE, IMPORTED, compile_modules, packages_of, remove, size, strip

LOAD = """
import sys
from dagster._core.workspace.autodiscovery import loadable_targets_from_python_module
from pulso_etl.calls import refresh
[target] = loadable_targets_from_python_module("pulso_etl.definitions", None)
print(refresh("dashboard_data", start=sys.argv[1]).counts["read"])
"""
"""As the code server finds the definitions, and a load."""


def write(file: Path, text: str = "0123456789") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_what_nothing_imports_goes_and_the_rest_stays(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    gone = [
        "pandas/tests/io/test_x.py",
        "pyarrow/libarrow_flight.so.26",
        "pyarrow/libarrow_python.so",
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
        "dagster/_utils/test/__init__.py",
    ]
    for name in gone + stay:
        write(packages / name)
    assert remove(tmp_path) == 10 * len(gone)
    assert {one.relative_to(packages).as_posix() for one in packages.rglob("*") if one.is_file()} == set(stay)
    assert size(tmp_path) == 10 * len(stay)
    assert remove(tmp_path) == 0


def test_a_folder_that_is_no_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no lib/python3"):
        remove(tmp_path)


def test_the_image_is_slimmed_in_the_step_that_fills_it() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    (step,) = [one for one in dockerfile.split("\nRUN ") if "--require-hashes -r requirements.lock" in one and "slim.py" in one]
    assert "python slim.py /opt/pulso-etl" in step
    assert "PYTHONPYCACHEPREFIX=/opt/pulso-etl/bytecode" in dockerfile.split("\nFROM base AS pulso-etl")[1]
    assert "deploy/slim.py" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_package_imports_nothing_of_what_goes() -> None:
    gone = re.compile(r"\b(pyarrow\.flight|S3FileSystem|kubernetes\.aio|googleapiclient)\b")
    assert [file for file in (ROOT / "pulso_etl").rglob("*.py") if gone.search(file.read_text(encoding="utf-8"))] == []


def link(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    os.link(file, to)


@pytest.fixture
def image(tmp_path: Path, processes: None) -> Path:
    """An environment with the packages of the image, as hard links to this environment's files, and with their bytecode."""
    folder = tmp_path / "image"
    venv.EnvBuilder(symlinks=True).create(folder)
    packages = packages_of(folder)
    locked = re.findall(r"^([a-z0-9._-]+)==", (DEPLOY / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    files = {name: distribution(name).files or [] for name in locked if present(name)}
    assert len(files) > 100
    pairs = [(Path(str(one.locate())), packages / one) for found in files.values() for one in found if one.parts[0] != ".."]
    pairs += [(one, packages / one.relative_to(ROOT)) for one in Path(pulso_etl.__file__).parent.rglob("*.*") if one.is_file()]
    for file, to in pairs:
        if "__pycache__" in file.parts or not file.exists():
            continue
        link(file, to)
        if file.suffix == ".py" and (bytecode := Path(importlib.util.cache_from_source(str(file)))).exists():
            link(bytecode, to.parent / "__pycache__" / bytecode.name)
    return folder


def present(name: str) -> bool:
    """Whether this environment has the package. The lock also has packages of other systems."""
    try:
        return bool(distribution(name))
    except ModuleNotFoundError:
        return False


def test_what_stays_is_enough_to_find_the_definitions_and_to_load(
    image: Path, settings: Settings, emulator: BigQueryEmulator
) -> None:
    seed(settings, emulator)
    kept = Path(pyarrow.__file__).with_name("libarrow_python.so")
    assert remove(image) > 20e6
    assert kept.exists(), "the environment that runs the tests lost a file"
    command = [str(image / "bin" / "python"), "-c", LOAD, str(TODAY)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert (ended.returncode, ended.stdout) == (0, "40\n"), ended.stderr[-3000:]


@pytest.mark.skipif(shutil.which("strip") is None, reason="strip is of the package binutils")
def test_a_library_without_symbols_works_and_a_hard_link_of_it_stays_as_it_is(tmp_path: Path, processes: None) -> None:
    import yaml._yaml

    before = Path(yaml._yaml.__file__)
    folder = tmp_path / "lib" / "python3" / "site-packages"
    link(before, folder / before.name)
    write(folder / "no_library.so")
    taken = before.stat().st_size
    freed = strip(tmp_path)
    assert 0 < freed < taken == before.stat().st_size
    assert size(folder / before.name) == taken - freed
    assert ctypes.PyDLL(str(folder / before.name)).PyInit__yaml
    assert not list(folder.glob("*.stripped"))


def test_bytecode_is_made_of_what_is_imported_and_of_whole_packages(tmp_path: Path, processes: None) -> None:
    folder = tmp_path / "image"
    venv.EnvBuilder(symlinks=True).create(folder)
    packages = packages_of(folder)
    for name in ("early/__init__.py", "early/unused.py", "late/__init__.py", "late/deep/module.py"):
        write(packages / name, "import json\n")
    compile_modules(folder, ["early"], ["late"])
    found = {one.relative_to(folder / "bytecode").as_posix() for one in (folder / "bytecode").rglob("*.pyc")}
    ours = {one.rpartition("site-packages/")[2] for one in found if "site-packages" in one}
    assert {re.sub(r"__pycache__/|\.cpython-\d+", "", one) for one in ours} == {
        "early/__init__.pyc",
        "late/__init__.pyc",
        "late/deep/module.pyc",
    }
    assert any(one.endswith(f"/json/decoder.{sys.implementation.cache_tag}.pyc") for one in found), "Python's own modules, too"
    with pytest.raises(subprocess.CalledProcessError):
        compile_modules(folder, ["nowhere"], [])


def test_what_gets_bytecode_is_there() -> None:
    assert [name for name in IMPORTED if importlib.util.find_spec(name.partition(".")[0]) is None] == []
    compile(COMPILE, "COMPILE", "exec")
