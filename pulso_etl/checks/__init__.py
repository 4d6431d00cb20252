"""The checks after a load, and the reconciliation with the source."""
