"""Removes from an environment what no process of Pulso ETL imports: python slim.py FOLDER

The image is built with it. Nothing is removed that a package needs for what Pulso ETL does with it; the reason stands beside each
pattern.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

UNUSED = {
    "**/tests": "tests of packages",
    "**/test": "tests of packages",
    "googleapiclient/discovery_cache/documents": "descriptions of all of Google's APIs; the one that is used is fetched",
    "dagster_webserver/**/*.map": "maps for debugging Dagster's UI in a browser",
    "kubernetes/aio": "a second client, for asyncio",
    "pyarrow/*flight*": "Arrow Flight",
    "pyarrow/*s3*": "S3",
    "pyarrow/include": "headers for C++",
    "pyarrow/src": "sources in C++",
    "pyarrow/libarrow_python.so": "a name for linking; the library is loaded by its version",
    "pyarrow/libarrow_python.so.*.*": "a name for linking",
    "**/*.pyx": "sources of compiled modules",
    "**/*.pxd": "sources of compiled modules",
    "**/*.pyi": "types for checkers",
}
"""Patterns below `site-packages`, each with what it removes."""
KEPT = ("pandas/_libs", "numpy/_core/include")
"""Folders in which nothing is removed."""


def slim(folder: Path) -> int:
    """Removes the files; the bytes that they took. Raises FileNotFoundError if the folder is no environment of Python."""
    packages = next(folder.glob("lib/python3*/site-packages"), None)
    if packages is None:
        raise FileNotFoundError(f"{folder} has no lib/python3*/site-packages")
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


def size(path: Path) -> int:
    """The bytes of the file, or of all files below the folder."""
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file()) if path.is_dir() else path.stat().st_size


if __name__ == "__main__":
    environment = Path(sys.argv[1])
    removed = slim(environment)
    print(f"{environment}: {size(environment) / 1e6:.0f} MB, of {(size(environment) + removed) / 1e6:.0f}")
