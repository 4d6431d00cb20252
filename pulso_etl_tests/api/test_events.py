"""Server-sent events and metrics of a running deployment."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import httpx
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pulso_etl.tables import TABLES
from pulso_etl_tests.api.conftest import Target
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.api.test_refreshes import TABLE, finished
from pulso_etl_tests.conftest import wait_until
from pulso_etl_tests.dagster_stack import CHECKOUT


class Listener:
    """Reads the events as a page does."""

    def __init__(self, api: ApiServer) -> None:
        self.events: list[tuple[str, Any]] = []
        self.connected = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, args=(api,), daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        assert self.connected.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)

    def _listen(self, api: ApiServer) -> None:
        with api.client() as client, client.stream("GET", "/api/v1/etl/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            self._connection: socket.socket = answer.extensions["network_stream"].get_extra_info("socket")
            name = ""
            try:
                for line in answer.iter_lines():
                    if line.startswith("event: "):
                        name = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        self.events.append((name, json.loads(line.removeprefix("data: "))))
                        self.connected.set()
            except httpx.TransportError:
                assert self._stop.is_set()

    def states_of(self, table: str) -> list[str | None]:
        """The states of the table's run, in the order in which the events told them."""
        told = []
        for name, data in self.events:
            tables = {"status": data.get("tables"), "table": [data]}.get(name) or []
            told += [entry["run_under_way"] and entry["run_under_way"]["state"] for entry in tables if entry["table"] == table]
        return told


def test_a_refresh_is_told_as_it_goes(api: ApiServer) -> None:
    with Listener(api) as listener:
        name, first = listener.events[0]
        assert (name, first["total_tables"]) == ("status", len(TABLES))
        told = finished(api, api.call("POST", f"{TABLE}/dashboard_data?force=true").json())
        assert told["status"] == "success"
        wait_until(lambda: "running" in listener.states_of("dashboard_data")[:-1], 20)
        wait_until(lambda: listener.states_of("dashboard_data")[-1] is None, 20)
        latest = [data for name, data in listener.events if name == "status"][-1]
        assert latest["recent_activity"][0]["run_id"] == told["runs"]["dashboard_data"]["run_id"]


def test_a_listener_who_comes_back_hears_which_days_have_changed(api: ApiServer, target: Target) -> None:
    def heard(last_id: str) -> list[tuple[str, str, Any]]:
        """The events that a listener hears. The listener leaves after two events, or after one second."""
        found, event_id, name = [], "", ""
        timeout = httpx.Timeout(30, read=1.5)
        with (
            suppress(httpx.ReadTimeout),
            api.client(**{"Last-Event-ID": last_id}) as client,
            client.stream("GET", "/api/v1/etl/events", timeout=timeout) as answer,
        ):
            for line in answer.iter_lines():
                event_id = line.removeprefix("id: ") if line.startswith("id: ") else event_id
                name = line.removeprefix("event: ") if line.startswith("event: ") else name
                if line.startswith("data: "):
                    found.append((name, event_id, json.loads(line.removeprefix("data: "))))
                if len(found) == 2:
                    break
        return found

    assert finished(api, api.call("POST", f"{TABLE}/evolution_data?force=true").json())["status"] == "success"
    [(name, last_id, _)] = heard("")[:1]
    assert name == "status"
    target.conn.execute("UPDATE evolution_data SET cuentas = cuentas + 1")
    told = finished(api, api.call("POST", f"{TABLE}/evolution_data?force=true").json())
    version = api.call("GET", "/api/v1/etl/status/table/evolution_data").json()["table"]["data_version"]
    days = told["runs"]["evolution_data"]["partitions"]
    events = heard(last_id)
    [(name, event_id, body)] = events[1:]
    changed = body.pop("keys")
    assert (name, body) == ("data", {"table": "evolution_data", "data_version": version, "days": [days]})
    assert {tuple(key) for key in changed} == {TABLES["evolution_data"].primary_key}
    first, last = days.split("..")
    rows = target.conn.execute("SELECT count(*) FROM evolution_data WHERE fecha_foto BETWEEN %s AND %s", (first, last)).fetchone()
    assert (len(changed),) == rows
    assert {first, last} <= {key["fecha_foto"] for key in changed}
    assert f"evolution_data={version}" in event_id


LABELS = ("table", "status", "kind", "purpose")


def test_the_metrics_say_what_postgresql_says(api: ApiServer, target: Target) -> None:
    assert finished(api, api.call("POST", f"{TABLE}/dashboard_data?force=true").json())["status"] == "success"
    wait_until(lambda: api.call("GET", "/api/v1/etl/status").json()["running"] == 0, 20)
    answer = api.call("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {
        (
            sample.name,
            *(sample.labels[name] for name in ("table", "status", "kind", "purpose") if name in sample.labels),
        ): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    detail = api.call("GET", "/api/v1/etl/status/table/dashboard_data").json()
    successes = [entry for entry in detail["extractions"] if entry["status"] == "success"]
    assert found["pulso_last_extraction_rows", "dashboard_data"] == 150
    assert found["pulso_extractions_total", "dashboard_data", "success"] == len(successes)
    for kind in ("inserted", "updated", "unchanged", "deleted"):
        assert found["pulso_rows_total", "dashboard_data", kind] == sum(entry[kind] for entry in successes)
    assert 0 < found["pulso_freshness_age_seconds", "dashboard_data"] < 600
    assert found["pulso_stale", "dashboard_data"] == 0
    [[rows]] = target.rows("SELECT count(*) FROM dashboard_data")
    assert (detail["table"]["rows"], detail["table"]["last_load"]["run_id"]) == (rows, successes[0]["run_id"])
    assert sum(day["rows"] or 0 for day in detail["partitions"]) == rows
    path = "/api/v1/etl/status/table/dashboard_data"
    [newest] = api.call("GET", f"{path}/extractions?limit=1").json()
    older = api.call("GET", f"{path}/extractions?before={newest['id']}").json()
    assert [newest, *older] == api.call("GET", f"{path}/extractions").json()
    [*_, first, last] = api.call("GET", f"{path}/days?days=366").json()
    assert api.call("GET", f"{path}/days?days=1&before={last['day']}").json() == [first]
    assert api.call("GET", "/api/v1/etl/status").json()["daemon"] is True
    assert found["pulso_refresh_every_seconds", "dashboard_data"] == 6 * 3600
    assert found["pulso_run_running", "dashboard_data"] == 0
    assert found["pulso_data_version", "dashboard_data"] == detail["table"]["data_version"] > 0
    assert found[("pulso_dagster_up",)] == 1
    assert ("pulso_bigquery_billed_bytes_total", "dashboard_data", "success") in found
    assert found["pulso_missed_changes_total", "dashboard_data"] == 0
    assert min(found["pulso_storage_bytes", "etl_extractions"], found["pulso_storage_bytes", "event_logs"]) > 0
    costs = api.call("GET", "/api/v1/etl/status").json()["costs"]
    assert found["pulso_bigquery_month_bytes", "billed"] == costs["month"]["bytes_billed"] >= costs["today"]["bytes_billed"] > 0
    assert found["pulso_bigquery_month_end_bytes", "billed"] == costs["month_end"]["bytes_billed"]
    loads = [size for (name, *_), size in found.items() if name == "pulso_bigquery_billed_bytes_total"]
    others = [size for (name, *_), size in found.items() if name == "pulso_bigquery_query_billed_bytes_total"]
    # All of it was this month, unless a month has just begun.
    assert (sum(loads) + sum(others), len(others)) >= (costs["month"]["bytes_billed"], 2 * len(TABLES))
    assert found["pulso_bigquery_avoided_bytes_total", "dashboard_data"] == detail["table"]["costs"]["month"]["bytes_avoided"]


def test_listeners_who_leave_do_not_end_the_others(api: ApiServer) -> None:
    with Listener(api) as stays:
        with Listener(api):
            pass
        before = len(stays.events)
        told = finished(api, api.call("POST", f"{TABLE}/evolution_data?force=true").json())
        assert told["status"] == "success"
        wait_until(lambda: len(stays.events) > before, 20)


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_there_are(api: ApiServer) -> None:
    # A table has an age once it was loaded.
    finished(api, api.call("POST", f"{TABLE}/operation_data").json())
    families = list(text_string_to_metric_families(api.call("GET", "/metrics").text))
    samples = [sample for family in families for sample in family.samples]
    known = {sample.name for sample in samples}
    dashboard = json.loads((CHECKOUT / "deploy" / "grafana" / "pulso-etl.json").read_text(encoding="utf-8"))
    rules = yaml.safe_load((CHECKOUT / "deploy" / "prometheus" / "pulso-etl.rules.yml").read_text(encoding="utf-8"))
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert (len(asked) > 18, len(alerts) > 9) == (True, True)
    for expression in [*asked, *(alert["expr"] for alert in alerts)]:
        assert set(re.findall(r"pulso_\w+", expression)) <= known, expression
    for alert in alerts:
        assert {"alert", "expr", "labels", "annotations"} <= alert.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert alert["labels"]["severity"] in ("info", "warning", "critical")
        assert alert["annotations"].keys() == {"summary", "description"}
    tested = (CHECKOUT / "deploy" / "prometheus" / "pulso-etl.test.yml").read_text(encoding="utf-8")
    assert [alert["alert"] for alert in alerts if alert["alert"] not in tested] == []
    # Each rule that selects by a label finds the label's value, even before the first failure.
    for table in TABLES:
        for name, label, value in (
            ("pulso_extractions_total", "status", "failed"),
            ("pulso_table_state", "state", "failed"),
            ("pulso_failures_total", "cause", "locked"),
            ("pulso_bigquery_billed_bytes_total", "status", "failed"),
            ("pulso_rows_total", "kind", "inserted"),
            ("pulso_bigquery_query_billed_bytes_total", "purpose", "changes"),
        ):
            found = [one for one in samples if one.name == name and one.labels["table"] == table and one.labels[label] == value]
            assert len(found) == 1, (table, name)
    assert {one.value for one in samples if one.name in ("pulso_daemon_up", "pulso_dagster_up")} == {1}
    assert time.time() - next(one.value for one in samples if one.name.startswith("pulso_daemon_last_heartbeat")) < 300
