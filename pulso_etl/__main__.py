"""`python -m pulso_etl`, and the command `pulso-etl`."""

from pulso_etl.cli.main import main

# The processes of a refresh with several workers import this module, too.
if __name__ == "__main__":
    main()
