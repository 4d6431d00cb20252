"""Long ranges in chunks: independent runs of some days each, several at a time, each in its own process.

The assets' back-fill policy splits Dagster's own back-fills in the same way. This module works without Dagster's daemon.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.forkserver import ensure_running
from typing import Any, NoReturn

import dagster as dg

from pulso_etl import logs
from pulso_etl.definitions import build_defs
from pulso_etl.instance.preload import MODULE_VARIABLE
from pulso_etl.refreshing.execution import Outcome, run_plan
from pulso_etl.refreshing.plan import RefreshPlan, pieces
from pulso_etl.refreshing.presence import present
from pulso_etl.settings import Settings
from pulso_etl.sync.spec import TableSpec

Tell = Callable[[Outcome], None]


@dataclass(frozen=True)
class Common:
    """What all chunks of a refresh have in common; `logger` is the configuration of `lines.run_logger`."""

    settings: Settings
    tables: Mapping[str, TableSpec]
    logger: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Chain:
    """Chunks of one table that are loaded one after the other."""

    spec: TableSpec
    plans: tuple[RefreshPlan, ...]


def chains(specs: Mapping[str, TableSpec], plans: Sequence[RefreshPlan]) -> list[Chain]:
    """The chains that may go on at the same time. Each chunk is its own chain. The exception is a table whose keys live in several
    partitions: it has one chain, because it needs one writer at a time."""
    parts: dict[str, list[RefreshPlan]] = defaultdict(list)
    for piece in pieces(specs, plans):
        parts[piece.table].append(piece)
    found = []
    for plan in plans:
        spec = specs[plan.table]
        if plan.window is None:
            found.append(Chain(spec, (plan,)))
        elif spec.partition_in_key:
            found += [Chain(spec, (part,)) for part in parts[plan.table]]
        else:
            found.append(Chain(spec, tuple(parts[plan.table])))
    return found


def run_chunks(common: Common, instance: dg.DagsterInstance, todo: Sequence[Chain], workers: int, tell: Tell) -> None:
    """Runs every chunk, `workers` chains at a time, and reports each when it ends. A failed chunk does not stop the others.

    One worker runs in this process, with `instance`. A chain whose process was killed runs once more. Raises KeyboardInterrupt if
    an interrupt or SIGTERM ended the runs.
    """
    if workers == 1:
        for outcome in run_chains(common, instance, todo):
            tell(outcome)
        return
    waiting = list(todo)
    for last in (False, True):
        lost = []
        with _pool(workers) as pool:
            asked = {pool.submit(_run_in_process, common, chain): chain for chain in waiting}
            for future in as_completed(asked):
                chain = asked[future]
                try:
                    outcomes = future.result()
                except BrokenProcessPool:
                    # When one process dies, the pool drops all unfinished chains.
                    lost.append(chain)
                    outcomes = [_killed(plan) for plan in chain.plans] if last else []
                for outcome in outcomes:
                    tell(outcome)
        waiting = lost


def run_chains(common: Common, instance: dg.DagsterInstance, todo: Sequence[Chain]) -> Iterator[Outcome]:
    """Runs the chains in this process, chunk after chunk. Raises KeyboardInterrupt if an interrupt or SIGTERM ended a run."""
    defs = build_defs(common.settings, tables=common.tables)
    with present(common.settings) as process:
        for chain in todo:
            for plan in chain.plans:
                yield run_plan(defs, instance, chain.spec, plan, process, common.logger)


def whole(spec: TableSpec, plan: RefreshPlan, parts: Sequence[Outcome], seconds: float) -> Outcome:
    """The outcome of the whole plan, from the outcomes of its chunks. `seconds` is the total time, wall-clock."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts)
    failed = sorted((part for part in parts if part.error), key=lambda part: str(part.window))
    error = failed[0].error if failed else None
    if failed and len(parts) > 1:
        again = "; ".join(
            f"pulso-etl refresh {spec.as_argument} --from {p.window.start} --to {p.window.end}" for p in failed if p.window
        )
        error = f"{len(failed)} of {len(parts)} chunks failed, the others are loaded; first: {error}\nto load them again: {again}"
    # `parts` are in the order in which they ended. The last one knows the owed days, unless one of them has moved the watermark.
    owed = [part.owed for part in parts if part.error is None]
    return Outcome(
        spec.name,
        plan.window,
        plan.reason,
        parts[0].run_id if len(parts) == 1 else None,
        error,
        seconds,
        dict(counts),
        sum(part.bytes_billed for part in parts),
        sum(part.cost for part in parts),
        owed[-1] if owed and all(owed) else "",
        tuple(f"{part.window}: {text}" if len(parts) > 1 else text for part in parts for text in part.warnings),
    )


def _run_in_process(common: Common, chain: Chain) -> list[Outcome]:
    """What a process of the pool does."""
    with dg.DagsterInstance.get() as instance:
        return list(run_chains(common, instance, [chain]))


def _killed(plan: RefreshPlan) -> Outcome:
    return Outcome(plan.table, plan.window, plan.reason, error="the process of this chunk was killed twice")


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that end when this one ends, in any way."""

    def interrupt(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    pool = ProcessPoolExecutor(workers, _warm(), initializer=_begin, initargs=(dict(os.environ),))
    try:
        yield pool
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


def _warm() -> BaseContext:
    """The way in which processes start: as forks of a process that has imported what a run needs. A fork of this process would
    share its connections. If the fork server can't be started, each process starts a Python of its own."""
    context = multiprocessing.get_context("forkserver")
    os.environ[MODULE_VARIABLE] = __name__
    context.set_forkserver_preload(["pulso_etl.instance.warm"])
    try:
        ensure_running()
    except OSError:
        # For example, the path of its socket is too long.
        return multiprocessing.get_context("spawn")
    return context


def _begin(environment: Mapping[str, str]) -> None:
    """Prepares a process of the pool: it has the environment of its parent, sets up logs, and ends with its parent."""
    # The fork server may be older than the environment.
    os.environ.update(environment)
    logs.configure()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        # Like an interrupt, this rolls the load back and records its failure.
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
