"""B9: cancelling a large experiment in full flight stops its calls, and a budget holds over all Runners."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf

import pytest
from fault_checks import Watched, calls_of, check, event_problems, known_commits, row_problems, told, watch_problems
from fault_lab import Cluster, answering, cluster, price_of
from fault_specs import three_stages

from promptlooper.experiment import ExperimentState
from promptlooper.testing.eventually import eventually
from promptlooper.testing.provider import FakeProvider, ProviderRequest, Reply

RUNS, RUNNERS, AT_ONCE = 10_000, 3, 60
ALLOWED = 1.0  # seconds: no call starts later after the cancel was asked, none goes on for longer after its answer
SLOW, ONE_IN = 30.0, 20  # seconds that one answer in so many takes: only who hangs up ends such a call in time
DOLLAR, MAX_TOKENS, CAP = 1_000_000_000, 40, 48  # nano-USD
SPENT_AT_LEAST = DOLLAR - price_of(200, MAX_TOKENS)  # the bytes of a question and its parameters are less than 200
pytestmark = pytest.mark.timeout(600)


def in_full_flight(lab: Cluster) -> bool:
    """Every Runner works, and all that may run at once does."""
    asking = {call.asker for call in lab.provider.history[-4 * AT_ONCE :]}
    return len(asking) == RUNNERS and lab.provider.open >= AT_ONCE - 10 and len(lab.provider.history) > 300


def answering_slowly(seed: int) -> Callable[[ProviderRequest], Awaitable[Reply]]:
    quick, slow = answering(seed, 0.3, 1.5), answering(seed, SLOW, SLOW)

    async def answer(request: ProviderRequest) -> Reply:
        is_slow = random.Random(f"slow {seed} {request.question}").randrange(ONE_IN) == 0
        return await (slow if is_slow else quick)(request)

    return answer


@pytest.mark.parametrize("with_nats", [True, False], ids=["with NATS", "without NATS"])
async def test_no_call_starts_after_a_cancel(seed: int, with_nats: bool) -> None:
    """Here times are asserted, by the provider's clock: they are what is promised."""
    async with FakeProvider(answering_slowly(seed)) as provider, cluster(provider, runners=RUNNERS) as lab:
        async with lab.client(random.Random(seed).choice(lab.runners)) as client:
            if not with_nats:
                lab.nats.kill()
            created = await client.create(three_stages(RUNS, max_concurrency=AT_ONCE), "cancelled")
            watched = Watched()
            following = asyncio.create_task(watched.follow(client.watch(created.experiment_id)))
            await eventually(partial(in_full_flight, lab), within=60)
            assert provider.hung_up == 0
            asked = time.monotonic()
            await client.cancel(created.experiment_id)
            answered = time.monotonic()
            await provider.eventually(lambda p: p.open == 0)
            await following
            known = await told(client, created.experiment_id)
        last = max(call.started for call in provider.history) - asked
        stopped = max(call.ended or inf for call in provider.history)
        calls = calls_of(provider.history, (), known.runs, known_commits(watched, known.events))
        check(
            watch_problems(watched, known.events),
            event_problems(known.events),
            row_problems(known),
            [problem for problem in calls.problems if "is in no row" not in problem],  # of stages that were stopped
        )
        assert known.experiment.state is ExperimentState.CANCELLED
        assert last <= ALLOWED, f"a call started {last:.2f} s after the cancel was asked"
        assert stopped - answered <= ALLOWED, f"a call went on for {stopped - answered:.2f} s after the answer"
        assert provider.hung_up == sum(call.answered is None for call in provider.history) > 0
        assert provider.most_open <= AT_ONCE
        print(
            f"cancel answered after {answered - asked:.3f} s; the last call started {last:+.3f} s after it was asked,"
            f" {provider.hung_up} calls were given up, the last {stopped - answered:+.3f} s after the answer;"
            f" {len(provider.history)} calls, {provider.most_open} at once,"
            f" {len(known.runs)} of {RUNS} runs had started"
        )


async def test_a_dollar_on_three_runners_is_never_overshot(seed: int) -> None:
    charged = 0

    async def answer(request: ProviderRequest) -> Reply:
        nonlocal charged
        chance = random.Random(f"{seed} {request.question}")
        tokens_in, tokens_out = len(request.question.split()), chance.randint(1, MAX_TOKENS)
        charged += price_of(tokens_in, tokens_out)
        await asyncio.sleep(chance.uniform(0.02, 0.3))
        return Reply("word", tokens_in=tokens_in, tokens_out=tokens_out)

    async with FakeProvider(answer) as provider:
        async with cluster(provider, runners=RUNNERS) as lab, lab.client() as client:
            limits = {"budget_nanousd": DOLLAR}
            spec = three_stages(2_000, max_concurrency=CAP, limits=limits, params={"max_tokens": MAX_TOKENS})
            created = await client.create(spec, "a-dollar")
            watched = Watched()
            await watched.follow(client.watch(created.experiment_id))
            known = await told(client, created.experiment_id)
        calls = calls_of(provider.history, (), known.runs, known_commits(watched, known.events))
        check(watch_problems(watched, known.events), event_problems(known.events), row_problems(known), calls.problems)
        experiment = known.experiment
        assert (experiment.state, experiment.reason) == (ExperimentState.CANCELLED, "BUDGET")
        assert charged == experiment.cost_nanousd <= DOLLAR
        assert charged >= SPENT_AT_LEAST, "it stopped long before the next call could have been too dear"
        assert experiment.cost_reserved_nanousd == 0
        assert provider.most_open <= CAP
        assert len({call.asker for call in provider.history}) == RUNNERS
        print(
            f"{calls.calls} calls cost ${charged / DOLLAR:.6f} of $1.00, ${experiment.cost_nanousd / DOLLAR:.6f} told"
        )
