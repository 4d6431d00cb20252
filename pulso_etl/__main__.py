"""`python -m pulso_etl`, and the command `pulso-etl`."""

import gc

# The imports make half a million objects that stay. To look for garbage among them takes a quarter of a command's start.
gc.disable()
from pulso_etl.cli.main import main  # noqa: E402

gc.freeze()
gc.enable()

# The processes of a refresh with several workers import this module, too.
if __name__ == "__main__":
    main()
