"""dagster-gcp's BigQuery resource, without the rest of that package.

The package's own modules import everything that it has: the clients of Dataproc and Cloud Storage, Google's API client, and
dagster-pandas. That is a quarter of a process's start and 14 MB of its memory, and no process of this project needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec


@contextmanager
def not_run(*packages: str) -> Iterator[None]:
    """In the block, modules of these packages can be imported, and the packages' own code is not run.

    Outer packages come before inner ones. A package that has been imported stays as it is. Whoever imports such a package later
    gets it whole, with the same modules.
    """
    missing = [name for name in packages if name not in sys.modules]
    for name in missing:
        spec = find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.modules[name] = module_from_spec(spec)
    try:
        yield
    finally:
        for name in missing:
            sys.modules.pop(name, None)


with not_run("dagster_gcp", "dagster_gcp.bigquery"):
    from dagster_gcp.bigquery.resources import BigQueryResource

__all__ = ["BigQueryResource"]
