"""A made-up source for a trial of the deployment: BigQuery's emulator, on all addresses of its container.

    python trial.py [PORT]

The data end today. Each start makes them again.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pulso_etl.local.child import interruptible
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SampleData
from pulso_etl.settings import load_settings
from pulso_etl.sync.zone import DEFAULT

REST_PORT = 9050


def main(port: int) -> None:
    # This needs only the names of the source tables, and does not connect to PostgreSQL.
    settings = load_settings(database_url="postgresql://localhost/none")
    log = Path(tempfile.mkdtemp()) / "emulator.log"
    emulator = BigQueryEmulator(log, settings.bigquery_project_id, host="0.0.0.0", rest_port=port)
    with suppress(KeyboardInterrupt), interruptible(), emulator:
        SampleData(settings.sources(), DEFAULT.day(datetime.now(UTC))).seed_into(emulator.client())
        print(f"BigQuery emulator: sample data of 30 days on port {port}", flush=True)
        while emulator.child is not None and emulator.child.exit_code is None:
            time.sleep(1)
        sys.exit(f"the BigQuery emulator has ended:\n{log.read_text(errors='replace')[-800:]}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else REST_PORT)
