"""One refresh in its own process, which may be killed: `python -m chaos.worker TABLE FIRST LAST RETRIES SHIFT_SECONDS`."""

from __future__ import annotations

import sys
from datetime import timedelta

import time_machine

from chaos.refresh import refresh
from pulso_etl.settings import load_settings
from pulso_etl.sync.days import DayRange
from pulso_etl.tenancy.tenants import chosen

if __name__ == "__main__":
    table, first, last, retries, shift = sys.argv[1:]
    with time_machine.travel(timedelta(seconds=float(shift)), tick=True):
        deployed = chosen(load_settings(), None)
        outcome = refresh(deployed.settings, deployed.tables[table], DayRange.parse(first, last), retries=int(retries))
    sys.exit(outcome.error is not None)
