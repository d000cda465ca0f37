"""B1: Runners that are killed again and again: every run ends once, nothing committed is asked again."""

from __future__ import annotations

import asyncio
import random
from functools import partial

import pytest
from fault_checks import (
    Told,
    Watched,
    calls_of,
    check,
    event_problems,
    known_commits,
    result_problems,
    row_problems,
    told,
    total_problems,
    undisturbed,
    watch_problems,
)
from fault_lab import Cluster, answer_to, answering, cluster, price_of
from fault_specs import three_stages

from promptlooper.experiment import ExperimentSpec
from promptlooper.testing.eventually import eventually
from promptlooper.testing.provider import FakeProvider

RUNS, KILLS, RUNNERS = 300, 30, 3
KILLS_WITH_BUDGET, DOLLAR = 6, 1_000_000_000  # nano-USD
pytestmark = pytest.mark.timeout(900)


def reached(watched: Watched, point: int) -> bool:
    return len(watched.events) >= point or watched.terminal is not None


async def killing(lab: Cluster, watched: Watched, chance: random.Random, ends_at: int, kills: int) -> int:
    """Kills a Runner that has calls under way, at random points of the experiment's progress, and starts it again at
    once. Returns how many calls that were."""
    points = sorted(chance.sample(range(10, ends_at * 4 // 5), kills))
    open_calls = 0
    for point in points:
        await eventually(partial(reached, watched, point), within=300)
        await eventually(lambda: any(map(lab.open_calls_of, lab.runners)) or watched.terminal is not None, within=300)
        assert watched.terminal is None, "the experiment ended before the last kill"
        runner = chance.choice([runner for runner in lab.runners if lab.open_calls_of(runner)])
        open_calls += lab.open_calls_of(runner)
        lab.kill(runner)
        runner.start()
    return open_calls


async def killed(lab: Cluster, spec: ExperimentSpec, chance: random.Random, kills: int) -> Told:
    """The experiment twice, undisturbed and with kills; everything that was promised is checked."""
    runs = len(spec.inputs)
    async with lab.client() as client:
        quiet = await undisturbed(client, spec)
        lab.provider.history.clear()
        watched = Watched()
        created = await client.create(spec, "killed")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watched.follow(client.watch(created.experiment_id)))
            killer = tasks.create_task(killing(lab, watched, chance, runs * 5, kills))
        known = await told(client, created.experiment_id)
    calls = calls_of(lab.provider.history, lab.deaths, known.runs, known_commits(watched, known.events))
    check(
        watch_problems(watched, known.events),
        event_problems(known.events),
        row_problems(known),
        result_problems(known.runs, quiet.runs),
        total_problems(known.experiment, quiet.experiment),
        calls.problems,
    )
    print(
        f"{len(lab.deaths)} kills of {RUNNERS} Runners that had {killer.result()} calls open;"
        f" {len(known.runs)} runs, {len(known.events)} events;"
        f" {calls.questions} questions, {calls.calls} calls: {calls.repeated} repeated,"
        f" {calls.bound} were in flight or not committed at a kill; ${known.experiment.cost_nanousd / DOLLAR:.6f}"
    )
    return known


@pytest.mark.parametrize("replicas", [False, True], ids=["leases run out", "replicas succeed themselves"])
async def test_thirty_kills_of_three_runners_lose_nothing_and_repeat_only_what_was_open(
    seed: int, replicas: bool
) -> None:
    async with FakeProvider(answering(seed, 0.1, 0.6)) as provider:
        async with cluster(provider, runners=RUNNERS, replicas=replicas) as lab:
            await killed(lab, three_stages(RUNS), random.Random(seed), KILLS)
            waited = [runner.name for runner in lab.runners if runner.said("back from dead runners")]
            assert waited, "nobody took runs back"


async def test_a_budget_counts_what_kills_may_have_cost_and_no_total_does(seed: int) -> None:
    """The budget is large enough for all of it."""
    limits, params = {"budget_nanousd": 20 * DOLLAR}, {"max_tokens": 40}
    async with FakeProvider(answering(seed, 0.02, 0.3)) as provider, cluster(provider, runners=RUNNERS) as lab:
        spec = three_stages(100, limits=limits, params=params)
        experiment = (await killed(lab, spec, random.Random(seed), KILLS_WITH_BUDGET)).experiment
        asked = [(len(call.question.split()), len(answer_to(call.question).split())) for call in provider.history]
    charged = sum(price_of(*tokens) for tokens in asked)
    assert experiment.cost_nanousd <= charged <= experiment.cost_nanousd + experiment.cost_uncertain_nanousd
    print(
        f"the provider charged ${charged / DOLLAR:.6f}; answers cost ${experiment.cost_nanousd / DOLLAR:.6f}, and calls"
        f" that died may have cost ${experiment.cost_uncertain_nanousd / DOLLAR:.6f}"
    )
