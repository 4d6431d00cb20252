"""Makes an environment small and quick to start: python slim.py FOLDER

The image is built with it. It removes what no process of Pulso ETL imports, strips compiled libraries of their symbols, and writes
bytecode of the modules that the processes import, below FOLDER/bytecode. Processes find it by PYTHONPYCACHEPREFIX; they compile
other modules in memory. Nothing is removed that a package needs for what Pulso ETL does with it; the reason stands beside each
pattern.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

UNUSED = {
    "pandas/tests": "tests",
    "numpy/**/tests": "tests",
    "pyarrow/tests": "tests",
    "greenlet/tests": "tests",
    "websocket/tests": "tests",
    "googleapiclient/discovery_cache/documents": "descriptions of all of Google's APIs; the one that is used is fetched",
    "dagster_webserver/**/*.map": "maps for debugging Dagster's UI in a browser",
    "kubernetes/aio": "a second client, for asyncio",
    "pyarrow/*flight*": "Arrow Flight",
    "pyarrow/*s3*": "S3",
    "pyarrow/include": "headers for C++",
    "pyarrow/src": "sources in C++",
    "pyarrow/libarrow_python*.so": "names for linking; the libraries are loaded by their versions",
    "pyarrow/libarrow_python*.so.*.*": "names for linking",
    "pyarrow/_pyarrow_cpp_tests*": "tests",
    "pyarrow/**/*.px[di]": "sources of compiled modules",
    "**/*.pyx": "sources of compiled modules",
    "**/*.pxd": "sources of compiled modules",
    "**/*.pyi": "types for checkers",
}
"""Patterns below `site-packages`, each with what it removes. Not every folder `test` holds tests: Dagster imports its own."""
KEPT = ("pandas/_libs", "numpy/_core/include")
"""Folders in which nothing is removed."""
IMPORTED = (
    "celery.bin.celery",
    "celery.bin.worker",
    "dagster._cli",
    "dagster._daemon.cli",
    "dagster_graphql",
    "dagster_k8s",
    "dagster_postgres",
    "dagster_webserver.cli",
    "google.cloud.bigquery_storage",
    "pulso_etl.__main__",
    "pulso_etl.api.app",
    "pulso_etl.definitions",
    "pulso_etl.instance.celery_app",
    "pulso_etl.instance.celery_launcher",
)
"""What the processes import when they start: they get bytecode with all that they import."""
WHOLE = (
    "anyio",
    "dagster",
    "dagster_graphql",
    "google.cloud.bigquery",
    "grpc",
    "grpc_health",
    "h11",
    "httpcore",
    "httptools",
    "multiprocessing",
    "psycopg",
    "psycopg2",
    "pulso_etl",
    "pyarrow",
    "sqlglot",
    "uvicorn",
    "uvloop",
    "websockets",
)
"""Packages of which the processes import more while they work: they get bytecode whole."""
COMPILE = """
import compileall, importlib, sys
from importlib.util import find_spec
imported, whole = (names.split() for names in sys.argv[1:])
for name in imported:
    importlib.import_module(name)
for name in whole:
    compileall.compile_dir(find_spec(name).submodule_search_locations[0], quiet=1)
"""


def main(folder: Path) -> None:
    """Slims the environment and says what it did, in MB of files."""
    before = size(folder)
    removed = remove(folder)
    stripped = strip(folder)
    compile_modules(folder)
    print(
        f"{folder}: {before / 1e6:.0f} MB installed, {removed / 1e6:.0f} removed, {stripped / 1e6:.0f} of symbols stripped, "
        f"{size(folder / 'bytecode') / 1e6:.0f} of bytecode written: {size(folder) / 1e6:.0f}"
    )


def remove(folder: Path) -> int:
    """Removes the files of UNUSED; the bytes that they took. Raises FileNotFoundError if the folder is no environment of Python."""
    packages = packages_of(folder)
    freed = 0
    for pattern in UNUSED:
        for path in sorted(packages.glob(pattern)):
            if not path.exists() or path.relative_to(packages).as_posix().startswith(KEPT):
                continue
            freed += size(path)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    return freed


def strip(folder: Path) -> int:
    """Strips compiled libraries of the symbols that nothing loads them by; the bytes that they took.

    It leaves alone the folders `*.libs`: a tool has moved parts of those files, after which `strip` can break them. Raises
    FileNotFoundError without the program `strip`, and CalledProcessError if it fails.
    """
    freed = 0
    for path in sorted(packages_of(folder).rglob("*.so*")):
        if path.is_symlink() or any(part.endswith(".libs") for part in path.parts) or not is_elf(path):
            continue
        # Another file takes its place, so that a file of this name elsewhere, a hard link, stays as it is.
        smaller = path.with_name(path.name + ".stripped")
        subprocess.run(["strip", "--strip-unneeded", "-o", smaller, path], check=True)  # noqa: S603, S607 - the system's own
        freed += size(path) - size(smaller)
        smaller.replace(path)
    return freed


def compile_modules(folder: Path, imported: Sequence[str] = IMPORTED, whole: Sequence[str] = WHOLE) -> None:
    """Writes bytecode below FOLDER/bytecode, also of Python's own modules.

    Raises CalledProcessError if a module can't be imported.
    """
    given = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(  # noqa: S603 - the environment's own Python
        [folder.absolute() / "bin" / "python", "-c", COMPILE, " ".join(imported), " ".join(whole)],
        # Definitions need an address of PostgreSQL, and do not connect.
        env={**given, "PYTHONPYCACHEPREFIX": str(folder.absolute() / "bytecode"), "DATABASE_URL": "postgresql://none/none"},
        cwd=folder,
        check=True,
    )


def packages_of(folder: Path) -> Path:
    packages = next(folder.glob("lib/python3*/site-packages"), None)
    if packages is None:
        raise FileNotFoundError(f"{folder} has no lib/python3*/site-packages")
    return packages


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def size(path: Path) -> int:
    """The bytes of the file, or of all files below the folder."""
    return sum(one.lstat().st_size for one in path.rglob("*") if not one.is_dir()) if path.is_dir() else path.stat().st_size


if __name__ == "__main__":
    main(Path(sys.argv[1]))
