"""Turns a request to refresh into runs: plan, budget, launch, back-fills."""
