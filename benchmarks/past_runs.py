"""Two days of Dagster's own records: for each table, as many runs that succeeded as there are extractions of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import dagster as dg
import psycopg
from dagster._core.utils import make_new_run_id

from pulso_etl.access.permits import WHOLE_GRAPH
from pulso_etl.refreshing.launch import run_tags
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.spec import TableSpec

RUNS_A_TABLE = 8
RUNS = """
INSERT INTO runs (run_id, pipeline_name, status, run_body, create_timestamp, update_timestamp, start_time, end_time)
SELECT made.id, pipeline_name, status, replace(replace(run_body, run_id, made.id), %(table)s, name), at, at,
    extract(epoch FROM at), extract(epoch FROM at) + 2
FROM runs, unnest(%(names)s::text[]) AS name, generate_series(0, %(last)s) AS n,
    LATERAL (SELECT 'run-' || name || n AS id, (now() AT TIME ZONE 'UTC') - n * interval '6 hours' AS at) AS made
WHERE run_id = %(run)s
"""
TAGS = """
INSERT INTO run_tags (run_id, key, value)
SELECT 'run-' || name || n, key, replace(value, %(table)s, name)
FROM run_tags, unnest(%(names)s::text[]) AS name, generate_series(0, %(last)s) AS n WHERE run_id = %(run)s
"""


def add_past_runs(instance: dg.DagsterInstance, url: str, specs: Mapping[str, TableSpec]) -> None:
    """Replaces all runs of the instance's storage at `url` by copies of one run."""
    spec = next(iter(specs.values()))
    tags = run_tags(spec, DayRange(date(2026, 1, 1), date(2026, 1, 7)))
    run = dg.DagsterRun(WHOLE_GRAPH, make_new_run_id(), tags=tags, status=dg.DagsterRunStatus.SUCCESS)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("TRUNCATE runs CASCADE")
        instance.add_run(run)
        given = {"run": run.run_id, "table": spec.name, "names": list(specs), "last": RUNS_A_TABLE - 1}
        conn.execute(RUNS, given)
        conn.execute(TAGS, given)
        conn.execute("ANALYZE runs, run_tags")
