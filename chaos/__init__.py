"""Faults at random points of refreshes on real servers: `python -m chaos`, or `make chaos`."""
