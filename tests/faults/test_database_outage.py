"""B5: PostgreSQL does not answer for 20 seconds in mid-experiment."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import pytest
from fault_checks import (
    Watched,
    answer_problems,
    calls_of,
    check,
    event_problems,
    known_commits,
    most_open,
    result_problems,
    row_problems,
    told,
    total_problems,
    undisturbed,
    watch_problems,
)
from fault_lab import Cluster, answering, cluster, freeze, running, thaw
from fault_specs import MAX_CONCURRENCY, three_stages

from promptlooper.errors import DomainError
from promptlooper.experiment import ExperimentSpec
from promptlooper.experiments import ExperimentFilter
from promptlooper.testing.eventually import eventually
from promptlooper.testing.provider import FakeProvider

RUNS, OUTAGE = 300, 20.0  # seconds
OTHER, IN_THE_OUTAGE = "of another ", "in-the-outage"
pytestmark = pytest.mark.timeout(600)


@asynccontextmanager
async def stopped(lab: Cluster) -> AsyncIterator[None]:
    await asyncio.to_thread(lab.postgres.stop)
    try:
        yield
    finally:
        await running(lab.postgres)


@asynccontextmanager
async def frozen(lab: Cluster) -> AsyncIterator[None]:
    """Connections stay, and nothing comes over them."""
    processes = freeze(lab.postgres)
    try:
        yield
    finally:
        thaw(processes)


def in_the_outage() -> ExperimentSpec:
    """What clients try to create meanwhile."""
    return three_stages(1, name="in the outage", mark=OTHER)


def told_of(watched: Watched, events: int) -> bool:
    return len(watched.events) >= events


async def refused_all_the_time(lab: Cluster, experiment_id: str) -> Counter[str]:
    """What clients hear while the database is away, by reason: each must hear it before its deadline."""
    heard: Counter[str] = Counter()
    waited: dict[str, float] = {}
    until = time.monotonic() + OUTAGE

    async def hear(ask: Callable[[], Awaitable[object]]) -> None:
        while (asked := time.monotonic()) < until:
            try:
                await ask()
            except DomainError as error:
                heard[error.reason] += 1
                waited[error.reason] = max(waited.get(error.reason, 0.0), time.monotonic() - asked)
            else:
                heard["OK"] += 1
            await asyncio.sleep(0.2)

    async with lab.client(lab.runners[0]) as first, lab.client(lab.runners[1]) as second:
        # It may be stored all the same, once: what was on its way when the database froze is done when it thaws.
        await asyncio.gather(
            hear(partial(first.get, experiment_id)),
            hear(partial(second.list_experiments, ExperimentFilter())),
            hear(partial(second.create, in_the_outage(), IN_THE_OUTAGE)),
        )
    print({reason: f"{heard[reason]} times, after {seconds:.1f} s at most" for reason, seconds in waited.items()})
    return heard


@pytest.mark.parametrize("outage", [stopped, frozen])
async def test_an_outage_of_the_database_loses_and_repeats_nothing(
    seed: int, outage: Callable[[Cluster], AbstractAsyncContextManager[None]]
) -> None:
    async with FakeProvider(answering(seed, 0.05, 0.4)) as provider, cluster(provider, runners=2) as lab:
        async with lab.client() as client:
            quiet = await undisturbed(client, three_stages(RUNS))
            provider.history.clear()
            created = await client.create(three_stages(RUNS), "outage")
            watched = Watched()
            following = asyncio.create_task(watched.follow(client.watch(created.experiment_id)))
            await eventually(partial(told_of, watched, RUNS), within=60)
            pids = [runner.pid for runner in lab.runners]
            async with outage(lab):
                heard = await refused_all_the_time(lab, created.experiment_id)
            await following
            known = await told(client, created.experiment_id)
            # Whether it was stored in the outage or not: asked again, it is there once.
            other = await client.create(in_the_outage(), IN_THE_OUTAGE)
            await Watched().follow(client.watch(other.experiment_id))
            late = await told(client, other.experiment_id)
            listed = (await client.list_experiments(ExperimentFilter())).experiments
        history = [call for call in provider.history if OTHER not in call.question]
        calls = calls_of(history, (), known.runs, known_commits(watched, known.events))
        check(
            watch_problems(watched, known.events),
            event_problems(known.events),
            row_problems(known),
            result_problems(known.runs, quiet.runs),
            total_problems(known.experiment, quiet.experiment),
            calls.problems,
        )
        assert [runner.pid for runner in lab.runners if runner.is_alive] == pids, "a Runner ended"
        assert most_open(history) <= MAX_CONCURRENCY
        assert set(heard) == {"STORE_UNAVAILABLE"}, "calls in the outage failed with something else"
        check(event_problems(late.events), row_problems(late), answer_problems(late.runs))
        assert sum(experiment.name == "in the outage" for experiment in listed) == 1
        for runner in lab.runners:
            assert not runner.said("back from dead runners"), f"{runner.name} robbed the other"
            assert not runner.said("lost its lease"), f"{runner.name} was robbed"
        print(
            f"{OUTAGE:g} s without the database: {dict(heard)} heard meanwhile; {calls.calls} calls, none repeated;"
            f" {len(known.events)} events"
        )
