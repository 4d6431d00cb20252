"""The open points about BigQuery: asked of the double, and replayed from records."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pulso_etl.bigquery.verify import MOST_USD, POINTS, Record, Scratch, verify
from pulso_etl.cli.main import app
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl_tests.generated import RECORDS


def test_the_double_answers_every_point_by_its_rules_and_nothing_is_left(emulator: BigQueryEmulator) -> None:
    client, told = emulator.client(), []
    record = verify(client, "double", lambda point, answer: told.append((point.name, answer)))
    assert (record.differences, record.faults) == ({}, {})
    assert [name for name, _ in told] == list(record.answers) == [point.name for point in POINTS]
    assert not [one for one in client.list_datasets() if one.dataset_id.startswith("pulso_verify_")]


@pytest.mark.parametrize("file", sorted(RECORDS.glob("*.json")), ids=lambda file: file.stem)
def test_a_record_holds_the_rules_of_the_double(file: Path) -> None:
    record = Record.read(file)
    assert record.differences == {}, "the double has another rule: change it in pulso_etl/local/double.py"
    assert set(record.answers) == {point.name for point in POINTS}
    assert "gserviceaccount" not in file.read_text(encoding="utf-8")


def test_another_answer_is_a_difference_and_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    file, now = tmp_path / "record.json", datetime.now(UTC).replace(microsecond=0)
    record = Record("bigquery", now, {"cached": False, "delete_moves": True, "gone": 1}, {"buffer": "no right"})
    file.write_text(record.as_json(), encoding="utf-8")
    assert Record.read(file) == record
    assert record.differences == {"cached": (True, False)}
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="is no record of verify-source"):
        Record.read(file)


def test_no_more_queries_than_announced_are_sent(emulator: BigQueryEmulator) -> None:
    assert MOST_USD < 0.01
    with pytest.raises(RuntimeError, match="no more than"):
        Scratch(emulator.client(), "p.d", sent=40).run("SELECT 1")


def test_the_command_says_what_it_costs_and_asks_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@127.0.0.1:9/d")
    refused = CliRunner().invoke(app, ["verify-source"], input="n\n")
    assert refused.exit_code == 1
    assert "23 points are asked for in the emulator" in refused.output
    assert "Go on?" in refused.output
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "verify-source.json").touch()
    assert "exists; name another file" in str(CliRunner().invoke(app, ["verify-source", "--yes"]).exception)
