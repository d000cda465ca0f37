"""B1: Runners that are killed again and again: every run ends once, nothing committed is asked again."""

from __future__ import annotations

import asyncio
import random
from functools import partial

import pytest
from fault_checks import (
    Watched,
    calls_of,
    check,
    event_problems,
    result_problems,
    row_problems,
    told,
    undisturbed,
    watch_problems,
)
from fault_lab import Cluster, answering, cluster
from fault_specs import three_stages

from promptlooper.testing.eventually import eventually
from promptlooper.testing.provider import FakeProvider

RUNS, KILLS, RUNNERS = 300, 30, 3
pytestmark = pytest.mark.timeout(900)


def reached(watched: Watched, point: int) -> bool:
    return len(watched.events) >= point or watched.terminal is not None


async def killing(lab: Cluster, watched: Watched, chance: random.Random, ends_at: int) -> None:
    """Kills a Runner at random points of the experiment's progress, and starts it again at once."""
    points = sorted(chance.sample(range(10, ends_at - 30), KILLS))
    for point in points:
        await eventually(partial(reached, watched, point), within=300)
        assert watched.terminal is None, "the experiment ended before the last kill"
        runner = chance.choice(lab.runners)
        lab.kill(runner)
        runner.start()


async def test_thirty_kills_of_three_runners_lose_nothing_and_repeat_only_what_was_open(seed: int) -> None:
    chance = random.Random(seed)
    async with FakeProvider(answering(seed, 0.02, 0.3)) as provider, cluster(provider, runners=RUNNERS) as lab:
        async with lab.client() as client:
            quiet = await undisturbed(client, three_stages(RUNS))
            provider.history.clear()
            watched = Watched()
            created = await client.create(three_stages(RUNS), "thirty-kills")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(watched.follow(client.watch(created.experiment_id)))
                tasks.create_task(killing(lab, watched, chance, RUNS * 5))
            known = await told(client, created.experiment_id)
        calls = calls_of(provider.history, lab.deaths, known.runs, watched.committed())
        check(
            watch_problems(watched, known.events),
            event_problems(known.events),
            row_problems(known),
            result_problems(known.runs, quiet.runs),
            calls.problems,
        )
        print(
            f"{len(lab.deaths)} kills of {RUNNERS} Runners; {len(known.runs)} runs, {len(known.events)} events;"
            f" {calls.questions} questions, {calls.calls} calls: {calls.repeated} repeated,"
            f" {calls.bound} were in flight or not committed at a kill"
        )
