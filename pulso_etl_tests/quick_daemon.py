"""`python -m pulso_etl_tests.quick_daemon run ...`: Dagster's daemon, which looks for back-fills every 2 seconds instead of 30."""

from __future__ import annotations

import gc

gc.disable()  # what is imported stays, so there is no garbage to look for

from dagster._daemon import controller  # noqa: E402
from dagster._daemon.cli import main  # noqa: E402

if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 2
    main()
