"""One refresh as a process of its own, which may be killed: `python -m chaos.worker TABLE RETRIES`."""

from __future__ import annotations

import sys

from chaos.refresh import refresh
from pulso_etl.settings import load_settings

if __name__ == "__main__":
    table, retries = sys.argv[1:]
    outcome = refresh(load_settings(), table, retries=int(retries))
    sys.exit(outcome.error is not None)
