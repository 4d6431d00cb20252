"""`python -m pulso_etl_tests.quick_daemon run ...`: Dagster's daemon, which looks for back-fills every 2 seconds instead of 30."""

from __future__ import annotations

from dagster._daemon import controller
from dagster._daemon.cli import main

if __name__ == "__main__":
    controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 2
    main()
