"""What `dagster.yaml` names, and the code server: Dagster's processes as we run them."""
