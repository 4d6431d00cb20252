"""`pulso-etl` with chunks of a few days, so that a back-fill of many chunks is short."""

from __future__ import annotations

from pulso_etl.cli.main import main
from pulso_etl.tables import TABLES
from pulso_etl_tests.declarations import altered

CHUNK = 14
"""Days. A month lies in several chunks, and the chunks lie in several months."""

# The processes of a back-fill import this module, too. They get the tables from the command.
if __name__ == "__main__":
    TABLES.update({name: altered(spec, chunk_days=CHUNK) for name, spec in TABLES.items()})
    main()
