"""The import of this module is the preload of a fork server: of `code_server`, or of the processes of `backfill`. Their environment
names what to preload."""

from __future__ import annotations

import os

from pulso_etl.instance.preload import MODULE_VARIABLE, preload

if module := os.environ.get(MODULE_VARIABLE):
    preload(module)
