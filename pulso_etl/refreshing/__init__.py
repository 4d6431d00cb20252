"""From a request to refresh to a run: plan, budget, launch, back-fills."""
