"""`python -m pulso_etl`, and the command `pulso-etl`."""

import gc
import sys

from pulso_etl.sync.errors import PulsoError

# The imports make half a million objects that stay. To look for garbage among them takes a quarter of a command's start.
gc.disable()
try:
    from pulso_etl.cli.main import main
except PulsoError as error:
    # The import reads the declarations of the tables.
    sys.exit(f"pulso-etl: {error}")

gc.freeze()
gc.enable()

# The processes of a refresh with several workers import this module, too.
if __name__ == "__main__":
    main()
