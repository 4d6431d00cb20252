"""The import of this module is the preload of a fork server: of `code_server`, or of the processes of `backfill`."""

from __future__ import annotations

import os

from pulso_etl.instance.preload import MODULE_VARIABLE, preload

preload(os.environ[MODULE_VARIABLE])
