"""`python -m pulso_etl`."""

from pulso_etl.cli import main

main()
