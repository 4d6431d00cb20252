"""The classes that `dagster.yaml` names, and the code server."""
