"""Summaries of large experiments, and what goes on while clients read them, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from math import ceil

import pytest
import sqlalchemy as sa
from runner_lab import Lab, ended, experiment, stage, watched
from watch_lab import WatchedRunner, watched_runner

from promptlooper.errors import StoreUnavailable
from promptlooper.experiment import ExperimentSpec, ModelEntry, Pipeline
from promptlooper.experiments import WatchMessage
from promptlooper.run import RunState
from promptlooper.runner import core as runner_core
from promptlooper.runner.spec.normal import body_sha256, completed
from promptlooper.runner.store import control, repository
from promptlooper.runner.store.database import READERS, Database
from promptlooper.runner.store.models import runs
from promptlooper.testing.eventually import eventually

LONG = 60.0  # seconds: as long as a test lasts


@contextmanager
def another_database(lab: Lab) -> Iterator[Database]:
    """As another Runner has it."""
    database = Database(lab.database_url)
    try:
        yield database
    finally:
        database.close()


@asynccontextmanager
async def readers_held(database: Database) -> AsyncIterator[None]:
    """Long reads of clients have all readers, and more of them wait."""
    let_go, begun = threading.Event(), threading.Semaphore(0)

    def long_read(connection: sa.Connection) -> None:
        begun.release()
        let_go.wait(LONG)

    reads = [asyncio.create_task(database.read(long_read, within=LONG)) for _ in range(2 * READERS)]
    try:
        for _ in range(READERS):
            await eventually(lambda: begun.acquire(blocking=False))
        yield
    finally:
        let_go.set()
        await asyncio.gather(*reads)


async def held(runner: WatchedRunner, lab: Lab, spec: ExperimentSpec) -> str:
    """An experiment whose runs wait for the model."""
    lab.model.go.clear()
    created = await runner.core.create(spec)
    total = created.counts.total
    await eventually(lambda: lab.model.running == total)
    return created.experiment_id


async def test_a_cancel_stops_calls_and_watchers_hear_of_it_while_clients_read_for_long(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        experiment_id = await held(runner, lab, experiment("x"))
        messages: list[WatchMessage] = []

        async def watch() -> None:
            messages.extend(await watched(runner.core, experiment_id))

        watching = asyncio.create_task(watch())
        await eventually(lambda: runner.database.reads["news_after"])
        async with readers_held(runner.database):
            with another_database(lab) as other:
                await other.write(partial(control.cancel, experiment_id=experiment_id, now_us=1))
            await eventually(lambda: lab.model.running == 0)
            await eventually(watching.done)
        await watching
        assert messages[-1].terminal is not None


async def test_a_cancel_of_one_run_stops_its_call_while_clients_read_for_long(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        experiment_id = await held(runner, lab, experiment("{{ input.n }}", rows=[{"n": 1}, {"n": 2}]))
        async with readers_held(runner.database):
            with another_database(lab) as other:
                cancel = partial(control.cancel_run, experiment_id=experiment_id, run_index=0, now_us=1)
                await other.write(cancel)
            await eventually(lambda: lab.model.running == 1)
        lab.model.go.set()
        counts = (await ended(runner.core, experiment_id)).counts
        assert (counts.cancelled, counts.completed) == (1, 1)


async def test_new_work_starts_while_clients_read_for_long(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        async with readers_held(runner.database):
            spec = completed(experiment("new"))
            new = repository.NewExperiment("new", spec, body_sha256(spec), "", 0, 0)
            with another_database(lab) as other:
                await other.write(partial(repository.create, new=new, now_us=1, failpoints=lab.failpoints))
            await eventually(lambda: lab.model.calls["new"] == 1)
        await ended(runner.core, "new")


async def test_a_summary_may_take_as_long_as_long_work(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async with watched_runner(lab) as runner:
        created = await runner.core.create(experiment("x"))
        await ended(runner.core, created.experiment_id)
        let_go = threading.Event()
        monkeypatch.setattr(runner_core, "LONG_WORK", 0.05)
        monkeypatch.setattr(runner_core, "summarize", lambda connection, source: let_go.wait(LONG))
        with pytest.raises(StoreUnavailable, match=r"within 0\.05 s"):
            await runner.core.summarize(created.experiment_id)
        let_go.set()


def compared(count: int) -> ExperimentSpec:
    """An experiment with that many variants."""
    models = tuple(ModelEntry(f"m{n}", f"mock/m{n}") for n in range(count))
    return experiment("x", pipelines=(Pipeline("direct", (stage("x"),), models),))


def store_latencies(
    connection: sa.Connection, experiment_id: str, latencies: Mapping[int, Sequence[tuple[RunState, int]]]
) -> None:
    """Instead of its runs, by variant."""
    query = sa.select(runs).where(runs.c.experiment_id == experiment_id).limit(1)
    row = connection.execute(query).one()._asdict()
    connection.execute(sa.delete(runs).where(runs.c.experiment_id == experiment_id))
    stored = [(variant, *each) for variant, several in latencies.items() for each in several]
    values = [
        {**row, "run_index": n, "variant_index": variant, "state": state.value, "latency_ms": ms}
        for n, (variant, state, ms) in enumerate(stored)
    ]
    connection.execute(sa.insert(runs), values)


async def test_latencies_are_the_nearest_ranks_of_each_variants_completed_runs(lab: Lab) -> None:
    random_ms = random.Random(7)
    # One for each size that rounds in its own way; the last two have none that completed.
    latencies = {size: [(RunState.COMPLETED, random_ms.randrange(50)) for _ in range(size + 1)] for size in range(41)}
    for several in latencies.values():
        several += [(RunState.FAILED, 1_000), (RunState.PENDING, 0)]
    latencies[41] = [(RunState.FAILED, 7)]
    async with watched_runner(lab) as runner:
        created = await runner.core.create(compared(43))
        await ended(runner.core, created.experiment_id)
        await runner.database.write(partial(store_latencies, experiment_id=created.experiment_id, latencies=latencies))
        summary = await runner.core.summarize(created.experiment_id)
    for index, variant in enumerate(summary.variants):
        ms = sorted(ms for state, ms in latencies.get(index, ()) if state is RunState.COMPLETED)
        expected = tuple(ms[ceil(percent * len(ms) / 100) - 1] if ms else None for percent in (50, 95))
        assert (variant.latency_ms_p50, variant.latency_ms_p95) == expected, f"{len(ms)} runs"


async def test_a_summary_asks_the_database_no_more_for_more_variants(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        asked = []
        for count in (1, 10):
            created = await runner.core.create(compared(count))
            await ended(runner.core, created.experiment_id)
            with statements() as seen:
                await runner.core.summarize(created.experiment_id)
            asked.append(len([text for text in seen if "latency_ms" in text]))
    assert asked[0] == asked[1]


@contextmanager
def statements() -> Iterator[list[str]]:
    """What the process asks of databases."""
    seen: list[str] = []

    def note(_: object, __: object, statement: str, *more: object) -> None:
        seen.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
