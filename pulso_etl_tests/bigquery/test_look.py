"""The look at a source: what it tells through views, when it tells nothing, and what it asks of BigQuery."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from google.cloud import bigquery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulso_etl.automation.looks import UNASKED, Looks
from pulso_etl.bigquery.look import MOST_TABLES, NO_DAYS, Look, changed_tables, holds_nothing, is_daily, state_of, unchanged_days
from pulso_etl.bigquery.pace import Pace
from pulso_etl.bigquery.source import BigQuerySource
from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl.local.sample_data import SCHEMAS, SampleData, base_of
from pulso_etl.refreshing.due import Standing
from pulso_etl.sync.days import DayRange
from pulso_etl.sync.errors import SourceError, SourceQuotaSpent, SourceUnavailable
from pulso_etl.sync.ledger.ledger import Day
from pulso_etl.sync.ledger.queries import Usage
from pulso_etl.sync.source_state import KeptPartitions, PartitionStates, SourceState
from pulso_etl.sync.spec import Column, ColumnType, TableSpec
from pulso_etl.tables import TABLES
from pulso_etl_tests.bigquery.conftest import MakeSource
from pulso_etl_tests.declarations import declare
from pulso_etl_tests.faulty_proxy import FaultyProxy, Request, edited, error

WINDOW = DayRange(date(2026, 7, 10), date(2026, 7, 15))
NAMES = {name: f"mibot-222814.LOOK_TESTS.{name}" for name in SCHEMAS}
BASES = {name: base_of(NAMES, name) for name in SCHEMAS}
SENT = r"^POST \S+/(queries|jobs)\b"


@pytest.fixture(scope="module")
def sample(emulator: BigQueryEmulator) -> SampleData:
    """The sample data under views."""
    data = SampleData(NAMES, date(2026, 7, 15), days=6, dashboard_rows_per_day=4)
    data.seed_into(emulator.client())
    return data


@pytest.fixture
def source(make_source: MakeSource, bigquery_proxy: FaultyProxy, sample: SampleData) -> BigQuerySource:
    return make_source(emulator_host=bigquery_proxy.url, sources=NAMES)


AT = datetime(2026, 7, 15, 12, tzinfo=UTC)


def kept(states: PartitionStates, at: datetime = AT) -> dict[str, KeptPartitions]:
    return {table: KeptPartitions(at, found) for table, found in states.items()}


def is_dry(request: Request) -> bool:
    return bool(request.json["configuration"].get("dryRun"))


def state(source: BigQuerySource, name: str) -> SourceState:
    found = state_of(source.look(TABLES[name], WINDOW), TABLES[name])
    assert isinstance(found, SourceState)
    return found


def days(*numbers: int) -> set[date]:
    return {date(2026, 7, number) for number in numbers}


@pytest.mark.parametrize("name", TABLES)
def test_nothing_changed_is_told_through_views_and_for_free(source: BigQuerySource, bigquery_proxy: FaultyProxy, name: str) -> None:
    look = source.look(TABLES[name], WINDOW)
    assert set(look.tables) == {BASES[one] for one in TABLES[name].sources}
    assert set(look.views) == {NAMES[one] for one in TABLES[name].sources} - set(look.tables)
    assert look.bytes_processed > 0
    assert state_of(look, TABLES[name]) == state(source, name)
    asked = bigquery_proxy.seen(SENT)
    assert [(is_dry(one), one.json["configuration"]["query"]["useQueryCache"]) for one in asked] == [(True, False)] * 2
    assert len(bigquery_proxy.seen(r"^GET \S+/tables/")) == 2 * (len(look.tables) + len(look.views))


def test_a_change_under_a_view_is_told_with_its_table_and_its_days(
    source: BigQuerySource, bigquery_proxy: FaultyProxy, emulator: BigQueryEmulator
) -> None:
    spec = TABLES["operation_data"]
    before, others = state(source, spec.name), state(source, "dashboard_data")
    base = source.look(spec, WINDOW).tables.values()
    known = source.partitions(spec, WINDOW, base)
    assert known.used == Usage(10 * 2**20)
    update = (
        f"UPDATE `{BASES['gestiones_unificadas']}` SET es_compromiso = TRUE WHERE fecha_gestion IN ('2026-07-12', '2026-07-14')"
    )
    emulator.client().query_and_wait(update)
    look = source.look(spec, WINDOW)
    after = state_of(look, spec)
    assert isinstance(after, SourceState)
    assert after.digest != before.digest
    assert changed_tables(before, after) == {BASES["gestiones_unificadas"]}
    assert is_daily(look, spec, BASES["gestiones_unificadas"])
    found = source.partitions(spec, WINDOW, list(look.tables.values()))
    assert set(WINDOW) - unchanged_days(kept(known.states), found.states, dict.fromkeys(WINDOW, AT)) == days(12, 14)
    asked = [one.json["configuration"] for one in bigquery_proxy.seen(SENT) if not is_dry(one)]
    assert len(asked) == 2
    for query in asked:
        assert query["labels"] == {"app": "pulso-etl", "purpose": "changes"}
        assert int(query["query"]["maximumBytesBilled"]) == source.maximum_bytes_billed
    assert state(source, "dashboard_data") == others


@pytest.mark.parametrize("name", TABLES)
def test_a_day_without_rows_is_known_by_dry_runs(source: BigQuerySource, name: str) -> None:
    spec = TABLES[name]
    none, whole = source.size(spec, NO_DAYS), source.size(spec, WINDOW)
    found = {day: holds_nothing(source.size(spec, DayRange(day, day)), none, whole) for day in (*WINDOW, date(2026, 7, 16))}
    assert found == dict.fromkeys(WINDOW, False) | {date(2026, 7, 16): True}
    # If the filter leaves out no partition, every day reads as much.
    assert not holds_nothing(whole, whole, whole)


def test_another_text_of_a_view_is_another_state(source: BigQuerySource, emulator: BigQueryEmulator) -> None:
    spec, client, view = TABLES["evolution_data"], emulator.client(), NAMES["dashboard_cobranzas"]
    before = state(source, spec.name)
    client.query_and_wait(f"CREATE OR REPLACE VIEW `{view}` AS SELECT * FROM `{BASES['dashboard_cobranzas']}` WHERE cuentas > 0")
    try:
        after = state(source, spec.name)
        assert changed_tables(before, after) is None
    finally:
        client.query_and_wait(f"CREATE OR REPLACE VIEW `{view}` AS SELECT * FROM `{BASES['dashboard_cobranzas']}`")
    assert state(source, spec.name) == before


def test_the_cache_answers_the_same_statement_and_says_what_it_saved(
    source: BigQuerySource, emulator: BigQueryEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(run: str, kept: Collection[str] = (BASES["asignaciones_clean"],)) -> dict[str, Any]:
        stream = source.stream(TABLES["assignment_data"], WINDOW, run)
        assert stream.look(kept) is not None
        with stream.open() as reader:
            assert reader.read_all().num_rows
        return stream.metadata

    first, second = read("one"), read("two")
    assert (first["cache_hit"], first["bytes_billed"]) == (False, 10 * 2**20)
    assert "bytes_avoided" not in first
    assert (second["cache_hit"], second["bytes_billed"]) == (True, 0)
    assert second["bytes_avoided"] == first["bytes_billed"] > 0
    emulator.client().query_and_wait(f"DELETE FROM `{BASES['asignaciones_clean']}` WHERE fecha_foto = '2026-07-10'")
    assert read("three")["cache_hit"] is False
    # The states of partitions are asked for if nobody has kept them and they can pay, and that bills.
    assert read("four", ())["bytes_billed"] == 0
    monkeypatch.setattr("pulso_etl.bigquery.source.question_pays", lambda *sizes: True)
    assert read("five", ())["bytes_billed"] == 10 * 2**20


def test_what_can_not_be_looked_at_is_no_signal_and_the_run_reads_all_the_same(
    source: BigQuerySource, bigquery_proxy: FaultyProxy
) -> None:
    bigquery_proxy.inject(r"^GET \S+/tables/dashboard_cobranzas_base\?", error(403, "accessDenied"))
    stream = source.stream(TABLES["dashboard_data"], WINDOW, "run")
    assert stream.look() is None
    assert stream.metadata["change_signal"].startswith("none: a table under it can't be looked at")
    bigquery_proxy.inject(SENT, error(400, "invalidQuery"))
    assert stream.look() is None
    assert stream.metadata["change_signal"].startswith("none: the look at the source failed")
    with stream.open() as reader:
        assert reader.read_all().num_rows == 24


def test_rows_in_a_streaming_buffer_are_no_signal(source: BigQuerySource, bigquery_proxy: FaultyProxy) -> None:
    buffer = {"estimatedRows": "1", "estimatedBytes": "1", "oldestEntryTime": "1"}
    bigquery_proxy.inject(r"^GET \S+/tables/dashboard_cobranzas_base\?", edited(lambda table: table | {"streamingBuffer": buffer}))
    look = source.look(TABLES["dashboard_data"], WINDOW)
    assert state_of(look, TABLES["dashboard_data"]) == f"{BASES['dashboard_cobranzas']} has rows in a streaming buffer"


def test_a_missing_table_is_named_and_an_answer_that_does_not_come_is_not_waited_for(make_source: MakeSource) -> None:
    missing = make_source(sources={"dashboard_cobranzas": "mibot-222814.NOPE.nope"})
    with pytest.raises(SourceError, match=r"^dashboard_data 2026-07-10\.\.2026-07-15: BigQuery does not know the table"):
        missing.look(TABLES["dashboard_data"], WINDOW)
    silent = make_source(emulator_host="http://192.0.2.1:9")
    with pytest.raises(SourceUnavailable):
        silent.look(TABLES["dashboard_data"], WINDOW, 0.2)


# Pure decisions


def table(name: str = "p.d.t", **properties: Any) -> bigquery.Table:
    """A table as `tables.get` returns it."""
    project, dataset, short = name.split(".")
    resource = {
        "tableReference": {"projectId": project, "datasetId": dataset, "tableId": short},
        "schema": {"fields": [{"name": "fecha_gestion", "type": "DATE"}, {"name": "timestamp_gestion", "type": "TIMESTAMP"}]},
        **{"type": "TABLE", "creationTime": "1000", "lastModifiedTime": "2000", "numRows": "5", "numBytes": "50"},
    }
    return bigquery.Table.from_api_repr(resource | properties)


GESTIONES = TABLES["operation_data"].with_query("SELECT fecha_gestion AS fecha_foto FROM `p.d.t`")


def look_at(*tables: bigquery.Table, text: str = "SELECT fecha_gestion AS fecha_foto FROM `p.d.t`", **more: Any) -> Look:
    found = {f"{one.project}.{one.dataset_id}.{one.table_id}": one for one in tables}
    return Look("p", text, tables=found, **more)


@pytest.mark.parametrize(
    ("look", "why"),
    [
        (look_at(unseen="no right to look"), "no right to look"),
        (look_at(), "reads no table"),
        (look_at(*(table(f"p.d.t{n}") for n in range(MOST_TABLES))), "50 tables or more"),
        *((look_at(table(type=kind)), f"is a {kind}") for kind in ("MATERIALIZED_VIEW", "EXTERNAL", "SNAPSHOT", "CLONE")),
        (look_at(table(streamingBuffer={"estimatedRows": "1"})), "streaming buffer"),
        (look_at(table(lastModifiedTime=None)), "no time of its last change"),
        (look_at(table(), views={"p.d.v": table("p.d.v", type="VIEW", view={"query": "x", "useLegacySql": True})}), "legacy SQL"),
        (
            look_at(
                table(),
                views={"p.d.v": table("p.d.v", type="VIEW", view={"query": "SELECT RAND() x FROM d.t", "useLegacySql": False})},
            ),
            "p.d.v: it uses RAND",
        ),
        (look_at(table(), text="SELECT x FROM d.t WHERE d = CURRENT_DATE()"), "the statement: it uses CURRENT_DATE"),
    ],
)
def test_whatever_is_doubtful_is_no_signal_and_says_why(look: Look, why: str) -> None:
    found = state_of(look, GESTIONES)
    assert isinstance(found, str)
    assert why in found


@pytest.mark.parametrize(
    "other",
    [
        look_at(table(lastModifiedTime="2001")),
        # Equality counts, not age: a restored table is older.
        look_at(table(lastModifiedTime="1999")),
        look_at(table(creationTime="1001")),
        look_at(table(numRows="6")),
        look_at(table(), table("p.d.u")),
        look_at(table(), text="SELECT fecha_gestion AS fecha_foto FROM `p.d.t` WHERE TRUE"),
        look_at(table(), schema=(("fecha_foto", "STRING", "NULLABLE"),)),
    ],
)
def test_any_difference_is_another_state(other: Look) -> None:
    one, another = state_of(look_at(table()), GESTIONES), state_of(other, GESTIONES)
    assert isinstance(one, SourceState)
    assert isinstance(another, SourceState)
    assert one.digest != another.digest
    changed = changed_tables(one, another)
    same_table = set(other.tables) == {"p.d.t"} and other.statement == look_at().statement and not other.schema
    assert changed == ({"p.d.t"} if same_table and other.tables["p.d.t"].created == table().created else None)


@pytest.mark.parametrize(
    ("partitioning", "daily"),
    [
        ({"type": "DAY", "field": "fecha_gestion"}, True),
        ({"type": "MONTH", "field": "fecha_gestion"}, False),
        ({"type": "DAY", "field": "timestamp_gestion"}, False),
        ({"type": "DAY"}, False),
        (None, False),
    ],
)
def test_only_a_partition_by_the_day_that_becomes_the_table_s_day_is_a_day_of_the_table(
    partitioning: dict[str, str] | None, daily: bool
) -> None:
    options: dict[str, Any] = {"timePartitioning": partitioning} if partitioning else {}
    found = table(**options)
    assert is_daily(look_at(found), GESTIONES, "p.d.t") is daily
    assert not is_daily(look_at(found, text="SELECT x AS fecha_foto FROM `p.d.t`"), GESTIONES, "p.d.t")
    assert not is_daily(look_at(found, text="SELECT FROM"), GESTIONES, "p.d.t")


BEFORE = {"20260714": "1", "20260715": "1"}


@pytest.mark.parametrize(
    ("now", "changed"),
    [
        ({"20260714": "1", "20260715": "2"}, days(15)),
        # Equality counts, not age.
        ({"20260714": "1", "20260715": "0"}, days(15)),
        ({"20260714": "1"}, days(15)),
        (BEFORE | {"20260713": "1"}, days(13)),
        (BEFORE | {"20260715": "2", "__NULL__": "1"}, days(15)),
        (BEFORE | {"__NULL__": "1"}, set()),
        # The table has changed, and its partitions do not tell where.
        (BEFORE, None),
        (BEFORE | {"20260715": "2", "__UNPARTITIONED__": "1"}, None),
        (BEFORE | {"2026071512": "1"}, None),
        (BEFORE | {"202607": "1"}, None),
        (BEFORE | {"202611": "1"}, None),
        (BEFORE | {"None": "1"}, None),
    ],
)
def test_days_whose_partitions_are_in_the_same_state_are_unchanged(now: dict[str, str], changed: set[date] | None) -> None:
    window = days(13, 14, 15)
    assert unchanged_days(kept({"t": BEFORE}), {"t": now}, dict.fromkeys(window, AT)) == (
        set() if changed is None else window - changed
    )


def test_a_table_whose_partitions_were_never_asked_for_and_a_second_one_that_changed_are_not_overlooked() -> None:
    read, later = dict.fromkeys(days(13, 14, 15), AT), BEFORE | {"20260715": "2"}
    assert unchanged_days({}, {"t": later}, read) == set()
    assert unchanged_days(kept({"t": BEFORE}), {"t": later, "u": later}, read) == set()
    both = {"t": later, "u": BEFORE | {"20260714": "2"}}
    assert unchanged_days(kept({"t": BEFORE, "u": BEFORE}), both, read) == days(13)


def test_partitions_tell_nothing_about_a_day_that_was_read_before_they_were_asked_for() -> None:
    read = {date(2026, 7, 13): AT - timedelta(seconds=1), date(2026, 7, 14): AT}
    assert unchanged_days(kept({"t": BEFORE}), {"t": BEFORE | {"20260715": "2"}}, read) == days(14)


# What is left out is as a full read would give it


FIRST, LAST = date(2026, 7, 1), date(2026, 7, 4)
SPAN = DayRange(FIRST, LAST)
DATASET = "mibot-222814.LOOK_GRAPHS"
THINGS = declare(
    name="things",
    description="For tests.",
    primary_key=("day", "k"),
    partition_column="day",
    columns=(
        Column(name="day", type=ColumnType.DATE),
        Column(name="k", type=ColumnType.TEXT),
        Column(name="n", type=ColumnType.INTEGER),
    ),
    lookback_days=4,
    query="SELECT day, k, n FROM `{top}` WHERE day BETWEEN @start AND @end",
)
OTHERS = declare(
    name="others",
    description="For tests: another table over the same view.",
    primary_key=THINGS.primary_key,
    partition_column="day",
    columns=THINGS.columns,
    lookback_days=4,
    query="SELECT day, k, n + 1 AS n FROM `{top}` WHERE day BETWEEN @start AND @end",
)
LAYERS = [
    "SELECT * FROM `{below}`",
    "SELECT day, k, n FROM `{below}` WHERE n > 1",
    "SELECT day, k, SUM(n) AS n FROM `{below}` GROUP BY day, k",
    "SELECT day, 'all' AS k, SUM(n) AS n FROM `{below}` GROUP BY 1",
    "WITH own AS (SELECT * FROM `{below}`) "
    "SELECT own.day, own.k, own.n + IFNULL(s.n, 0) AS n FROM own LEFT JOIN `{side}` s ON s.k = own.k",
    "SELECT DATE_ADD(day, INTERVAL 1 DAY) AS day, k, n FROM `{below}`",
    "SELECT day, k, SUM(n) OVER (PARTITION BY k ORDER BY day) AS n FROM `{below}`",
    "SELECT day, k, n FROM `{below}` UNION ALL SELECT day, CONCAT(k, '2') AS k, n FROM `{base}`",
    "SELECT day, k, n + (SELECT COUNT(*) FROM `{base}`) AS n FROM `{below}`",
    "SELECT s.day, s.k, b.n FROM `{below}` b JOIN `{base}` s ON s.k = b.k AND s.day <= b.day",
]
DAYS = st.dates(FIRST, LAST).map(str)
WRITES = st.one_of(
    st.builds("INSERT INTO `{{base}}` (day, k, n) VALUES ('{}', '{}', {})".format, DAYS, st.sampled_from("abc"), st.integers(0, 4)),
    st.builds("UPDATE `{{base}}` SET n = n + 1 WHERE day = '{}'".format, DAYS),
    st.builds("DELETE FROM `{{base}}` WHERE day = '{}' AND k = '{}'".format, DAYS, st.sampled_from("abc")),
    st.builds("DELETE FROM `{{base}}` WHERE day = '{}'".format, DAYS),
    st.builds("UPDATE `{{side}}` SET n = n + 1 WHERE k = '{}'".format, st.sampled_from("ab")),
    st.just("CREATE OR REPLACE VIEW `{top}` AS SELECT day, k, n + 1 AS n FROM `{below}`"),
    st.just("SELECT 1"),
)
GRAPHS = itertools.count()


@dataclass
class Reader:
    """What the ledger knows of one table, and the rows that it holds."""

    spec: TableSpec
    held: dict[date, list[Any]] = field(default_factory=dict)
    known: dict[date, Day] = field(default_factory=dict)
    state: SourceState | None = None
    kept: dict[str, KeptPartitions] = field(default_factory=dict)


@dataclass
class Graph:
    """Views over two base tables, and two tables that are refreshed as by the sensor. `questions` counts those about partitions."""

    client: bigquery.Client
    source: BigQuerySource
    names: Mapping[str, str]
    readers: Mapping[str, Reader] = field(default_factory=lambda: {one.name: Reader(one) for one in (THINGS, OTHERS)})
    questions: int = 0

    def run(self, statement: str) -> None:
        self.client.query_and_wait(statement.format(**self.names))

    def read(self, spec: TableSpec) -> dict[date, list[Any]]:
        rows: dict[date, list[Any]] = {day: [] for day in SPAN}
        with self.source.stream(spec, SPAN, "full").open() as reader:
            for row in reader.read_all().to_pylist():
                rows[row["day"]].append((row["k"], row["n"]))
        return {day: sorted(of_day) for day, of_day in rows.items()}

    def refresh(self, spec: TableSpec = THINGS, *, pays: bool = True) -> int:
        """Reads the days that the look does not skip. `pays`: the window is so large that questions about partitions can pay.
        Returns the number of skipped days."""
        one, now = self.readers[spec.name], datetime.now(UTC)
        with pytest.MonkeyPatch.context() as patch:
            for module in ("pulso_etl.automation.looks", "pulso_etl.bigquery.source"):
                patch.setattr(f"{module}.question_pays", lambda *sizes: pays)
            looks = Looks(self.source, self, time.monotonic() + 60)
            seen = looks.seen(spec, SPAN, Standing(days=one.known, source=one.state), now)
            # A run looks for itself. Nothing was written since, so its look would give the same result.
            state = seen.state or self.source.stream(spec, SPAN, "run").look(one.kept)
        left_out = [day for day in SPAN if day not in seen.days]
        full = self.read(spec)
        assert {day: one.held[day] for day in left_out} == {day: full[day] for day in left_out}, seen.note
        digest = state.digest if state else None
        for day in SPAN:
            loaded_at = one.known[day].loaded_at if day in left_out else now
            one.known[day] = Day(now, LAST + timedelta(days=9), loaded_at, len(full[day]), source=digest)
        one.held, one.state = full, state or one.state
        one.kept |= state.kept_partitions(now) if state else {}
        return len(left_out)

    # The notes of the look

    def partitions(self, table: str) -> Mapping[str, KeptPartitions]:
        return self.readers[table].kept

    def known(self, facts: Mapping[str, Any]) -> PartitionStates:
        kept = [one for reader in self.readers.values() for one in reader.kept.items()]
        return {base: one.states for base, one in kept if base in facts and one.facts == facts[base]}

    def asked(self, table: str, used: Usage) -> None:
        assert used.bytes_billed > 0
        self.questions += 1


@pytest.fixture(scope="module")
def graphs(emulator: BigQueryEmulator) -> Iterator[bigquery.Client]:
    client = emulator.client()
    client.create_dataset(DATASET, exists_ok=True)
    yield client
    client.delete_dataset(DATASET, delete_contents=True, not_found_ok=True)


def graph(client: bigquery.Client, emulator: BigQueryEmulator, layers: list[str]) -> Graph:
    number = next(GRAPHS)
    names = {name: f"{DATASET}.{name}_{number}" for name in ("base", "side", "top")}
    fields = [bigquery.SchemaField("day", "DATE"), bigquery.SchemaField("k", "STRING"), bigquery.SchemaField("n", "INT64")]
    base = bigquery.Table(names["base"], fields)
    base.time_partitioning = bigquery.TimePartitioning(field="day")
    client.create_table(base)
    client.create_table(bigquery.Table(names["side"], fields[1:]))
    values = ", ".join(f"('{day}', '{k}', {n})" for n, (day, k) in enumerate(itertools.product(SPAN, "ab")))
    client.query_and_wait(f"INSERT INTO `{names['base']}` (day, k, n) VALUES {values}")
    client.query_and_wait(f"INSERT INTO `{names['side']}` (k, n) VALUES ('a', 1), ('b', 2)")
    below = names["base"]
    for place, layer in enumerate(layers):
        view = names["top"] if place == len(layers) - 1 else f"{DATASET}.v{place}_{number}"
        client.query_and_wait(f"CREATE OR REPLACE VIEW `{view}` AS {layer.format(**names, below=below)}")
        below = view if view != names["top"] else below
    source = BigQuerySource(project="mibot-222814", sources={"top": names["top"]}, emulator_host=emulator.rest_url)
    return Graph(client, source, names | {"below": below})


@dataclass(frozen=True)
class Step:
    """A write, and the tables that are refreshed after it, each with whether questions about partitions can pay."""

    write: str
    refreshed: Sequence[tuple[TableSpec, bool]] = ((THINGS, True),)


STEPS = st.builds(Step, WRITES, st.lists(st.tuples(st.sampled_from([THINGS, OTHERS]), st.booleans()), min_size=1, max_size=2))


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=3), st.lists(STEPS, min_size=2, max_size=3))
def test_what_a_look_leaves_out_is_as_a_full_read_gives_it(
    graphs: bigquery.Client, emulator: BigQueryEmulator, layers: list[str], steps: list[Step]
) -> None:
    holds(graph(graphs, emulator, layers), steps)


def holds(found: Graph, steps: Sequence[Step]) -> None:
    """The property: what a look leaves out after each write is as a full read gives it. Raises AssertionError."""
    assert found.refresh() == 0
    assert found.refresh() == SPAN.days
    assert found.refresh(OTHERS) == 0
    for step in steps:
        found.run(step.write)
        for spec, pays in step.refreshed:
            found.refresh(spec, pays=pays)


def altered_facts(look: Look, state: SourceState, change: Callable[[str, list[int]], list[int] | None]) -> SourceState:
    """The state with other facts of its tables; a table without facts is left out."""
    tables = {name: told for name, facts in state.facts["tables"].items() if (told := change(name, facts)) is not None}
    return SourceState({**state.facts, "tables": tables}, state.partitions)


def sizes_alone(look: Look, state: SourceState) -> SourceState:
    """Compares how large tables are, and no times."""
    return altered_facts(look, state, lambda _, facts: [0, 0, *facts[2:]])


def newer_alone(look: Look, state: SourceState) -> SourceState:
    """Asks whether a table is newer than it ever was. Once it was of the year 2039, and was restored from an older time since."""
    return altered_facts(look, state, lambda _, facts: [0, max(facts[1], 2**41), 0, 0])


def one_table_alone(look: Look, state: SourceState) -> SourceState:
    """Looks at the first base table."""
    first = min(look.tables)
    return altered_facts(look, state, lambda name, facts: facts if name == first else None)


def no_texts(look: Look, state: SourceState) -> SourceState:
    """Does not look at the texts of views."""
    return SourceState({**state.facts, "text": "", "tables": state.facts["tables"]}, state.partitions)


@pytest.mark.parametrize(
    ("rule", "layer", "write"),
    [
        (sizes_alone, 0, "UPDATE `{base}` SET n = n + 1 WHERE day = '2026-07-02'"),
        (newer_alone, 0, "UPDATE `{base}` SET n = n + 1 WHERE day = '2026-07-02'"),
        (one_table_alone, 4, "UPDATE `{side}` SET n = n + 1 WHERE k = 'a'"),
        (no_texts, 0, "CREATE OR REPLACE VIEW `{top}` AS SELECT day, k, n + 1 AS n FROM `{below}`"),
    ],
)
def test_a_broken_rule_breaks_the_property(
    graphs: bigquery.Client,
    emulator: BigQueryEmulator,
    monkeypatch: pytest.MonkeyPatch,
    rule: Callable[[Look, SourceState], SourceState],
    layer: int,
    write: str,
) -> None:
    def broken(look: Look, spec: TableSpec) -> SourceState | str:
        state = state_of(look, spec)
        return state if isinstance(state, str) else rule(look, state)

    for module in ("pulso_etl.automation.looks", "pulso_etl.bigquery.source"):
        monkeypatch.setattr(f"{module}.state_of", broken)
    with pytest.raises(AssertionError, match="verified"):
        holds(graph(graphs, emulator, [LAYERS[layer]]), [Step(write)])


CHANGE = "UPDATE `{{base}}` SET n = n + 1 WHERE day = '2026-07-0{}'"


def test_an_answer_about_partitions_of_an_earlier_state_breaks_the_property(
    graphs: bigquery.Client, emulator: BigQueryEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = graph(graphs, emulator, LAYERS[:1])
    holds(found, [Step(CHANGE.format(1), [(OTHERS, True)])])

    def of_any_state(found: Graph, facts: Mapping[str, Any]) -> PartitionStates:
        return {base: one.states for base, one in found.readers["others"].kept.items() if base in facts}

    monkeypatch.setattr(Graph, "known", of_any_state)
    found.run(CHANGE.format(2))
    with pytest.raises(AssertionError, match="verified"):
        found.refresh()


def test_a_question_is_asked_only_if_it_can_pay_and_once_for_all_tables(
    graphs: bigquery.Client, emulator: BigQueryEmulator
) -> None:
    found = graph(graphs, emulator, LAYERS[:1])
    found.refresh()
    found.refresh(OTHERS)
    found.run(CHANGE.format(1))
    one = found.readers[THINGS.name]
    looks, standing = Looks(found.source, found, time.monotonic() + 60), Standing(days=one.known, source=one.state)
    seen = looks.seen(THINGS, SPAN, standing, datetime.now(UTC))
    assert seen.note == f"4 of 4 partitions to read, 0 verified; {UNASKED}"
    assert (found.refresh(pays=False), found.questions) == (0, 0)
    # The partitions were asked for before the change of the first day, which was read since. The next answer tells of both.
    found.run(CHANGE.format(2))
    assert (found.refresh(), found.questions) == (SPAN.days - 2, 1)
    # The other table was read last before both changes. What is known already is never too dear.
    assert (found.refresh(OTHERS, pays=False), found.questions) == (SPAN.days - 2, 1)
    found.run(CHANGE.format(3))
    assert (found.refresh(OTHERS), found.refresh(), found.questions) == (SPAN.days - 1, SPAN.days - 1, 2)


def test_only_the_day_that_changed_is_read_and_a_day_that_lost_all_rows_is_too(
    graphs: bigquery.Client, emulator: BigQueryEmulator
) -> None:
    found = graph(graphs, emulator, [LAYERS[4], LAYERS[2]])
    found.refresh()
    found.run("UPDATE `{base}` SET n = n + 1 WHERE day = '2026-07-02'")
    assert found.refresh() == SPAN.days - 1
    found.run("DELETE FROM `{base}` WHERE day = '2026-07-03'")
    found.run("UPDATE `{base}` SET n = n + 1 WHERE day = '2026-07-01'")
    assert found.refresh() == SPAN.days - 2
    found.run("UPDATE `{side}` SET n = 7 WHERE k = 'a'")
    assert found.refresh() == 0
    assert found.refresh() == SPAN.days


class Unkept:
    """Notes of looks that nobody keeps."""

    def partitions(self, table: str) -> Mapping[str, KeptPartitions]:
        return {}

    def known(self, facts: Mapping[str, Any]) -> PartitionStates:
        return {}

    def asked(self, table: str, used: Usage) -> None:
        pass


def test_looks_back_off_when_bigquery_refuses_one(source: BigQuerySource, bigquery_proxy: FaultyProxy) -> None:
    spec, now = TABLES["dashboard_data"], datetime.now(UTC)
    pace = Pace()
    for place, (where, fault, kind) in enumerate(
        [
            (r"^GET \S+/tables/", error(403, "rateLimitExceeded"), SourceUnavailable),
            (r"^GET \S+/tables/", error(403, "quotaExceeded"), SourceQuotaSpent),
            (SENT, error(429, "rateLimitExceeded"), SourceUnavailable),
            (SENT, error(503, "backendError"), SourceUnavailable),
        ]
    ):
        looks = Looks(source, Unkept(), time.monotonic() + 60, pace=pace, now=now)
        bigquery_proxy.inject(where, fault)
        with pytest.raises(kind):
            looks.sight(spec, WINDOW)
        sent = len(bigquery_proxy.seen(SENT))
        # Neither this tick asks again, nor the next one; a table that is due does not wait for the source.
        with pytest.raises(kind):
            looks.sight(spec, WINDOW)
        later = Looks(source, Unkept(), time.monotonic() + 60, pace=looks.pace, now=now + timedelta(seconds=59))
        with pytest.raises(SourceUnavailable, match="looks wait until"):
            later.sight(spec, WINDOW)
        assert (later.delay(), len(bigquery_proxy.seen(SENT))) == ("", sent)
        pace, now = looks.pace, now + timedelta(minutes=2**place)
    assert pace.refusals == 4
    looks = Looks(source, Unkept(), time.monotonic() + 60, pace=pace, now=now)
    assert isinstance(looks.sight(spec, WINDOW).state, SourceState)
    # The dry run, the table and the view.
    assert (looks.pace.refusals, looks.pace.sent) == (0, 3)
    bound = Looks(source, Unkept(), time.monotonic() + 60, pace=looks.pace, most_requests=3, now=now)
    assert "sent 3 requests" in bound.halt()
