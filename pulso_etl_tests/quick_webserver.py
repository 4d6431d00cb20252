"""`python -m pulso_etl_tests.quick_webserver ...`: Dagster's webserver, which starts in two thirds of the processor time."""

from __future__ import annotations

import gc

gc.disable()  # what is imported stays, so there is no garbage to look for

from dagster_webserver.cli import main  # noqa: E402

if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    main()
