"""What is checked after a load, and the reconciliation with the source."""
