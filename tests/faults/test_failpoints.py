"""B8: a Runner dies at every failpoint there is, one after another, and nothing that was promised is broken."""

from __future__ import annotations

import random
import signal
import time

import pytest
from fault_checks import (
    Watched,
    answer_problems,
    calls_of,
    check,
    event_problems,
    known_commits,
    row_problems,
    told,
    watch_problems,
)
from fault_lab import Cluster, Death, answering, cluster
from fault_specs import three_stages
from fault_stream import whole_stream

from promptlooper.errors import DeadlineExceeded, ServiceUnavailable
from promptlooper.experiment import CacheMode, Experiment, ExperimentSpec
from promptlooper.experiments import Experiments
from promptlooper.failpoints import NAMES
from promptlooper.testing.eventually import eventually
from promptlooper.testing.provider import FakeProvider

RUNS = 6
OFTEN = ("render_", "call_", "store_", "checkpoint_", "turn_")  # passed at least four times
STEPS = [name for name in NAMES if not name.startswith("batch_")]  # those are in tests/system/runner
ONCE = ("create_", "terminal_", "publish_", "ack_", "lease_")
pytestmark = pytest.mark.timeout(900)


async def created(client: Experiments, spec: ExperimentSpec, request_id: str) -> Experiment:
    """Asked again while the Runner is away, as a script would."""

    async def ask() -> Experiment:
        try:
            return await client.create(spec, request_id)
        except (ServiceUnavailable, DeadlineExceeded) as error:
            raise AssertionError(str(error)) from error

    return await eventually(ask, within=60)


async def dies_at(lab: Cluster, name: str, hit: int) -> str:
    """Runs an experiment on a Runner that dies at the failpoint and is started again without it; says what came."""
    (runner,) = lab.runners
    lab.provider.history.clear()
    runner.start(PROMPTLOOPER_FAILPOINTS=f"{name}=kill@{hit}")
    await runner.ready()
    async with lab.client() as client:
        # What is looked up is also led: whoever goes on waits until the Cache has given the dead one up.
        mode = CacheMode.READ_WRITE if name.startswith("lookup_") else CacheMode.WRITE_ONLY
        spec = three_stages(RUNS, name=name, mark=f"{name} ", cache=mode, max_concurrency=3)
        try:
            await client.create(spec, name)
        except ServiceUnavailable:
            assert name.startswith(("create_", "lease_")), f"{name} answered no create"
        assert await runner.ended() == -signal.SIGKILL
        now = time.monotonic()
        assert runner.said(f"failpoint {name}: kill at hit {hit}")
        runner.start()
        await runner.ready()
        experiment = await created(client, spec, name)
        watched = Watched()
        await watched.follow(client.watch(experiment.experiment_id))
        known = await told(client, experiment.experiment_id)
    last = known.experiment.event_seq
    in_stream = await whole_stream(lab.nats.url, experiment.experiment_id, last)
    assert in_stream == list(range(1, last + 1)), "the stream does not have each event once and in order"
    commits = known_commits(watched, known.events)
    calls = calls_of(lab.provider.history, [Death(runner.name, now, now)], known.runs, commits)
    check(
        watch_problems(watched, known.events),
        event_problems(known.events),
        row_problems(known),
        answer_problems(known.runs),
        calls.problems,
    )
    assert [(run.run_index, run.passed) for run in known.runs] == [(n, True) for n in range(RUNS)]
    runner.kill()
    return f"{calls.calls} calls, {calls.repeated} repeated"


async def test_a_runner_may_die_at_every_failpoint(seed: int) -> None:
    chance = random.Random(seed)
    met: dict[str, str] = {}
    async with FakeProvider(answering(seed, 0.0, 0.03)) as provider, cluster(provider, lease_ttl=1) as lab:
        lab.runners[0].kill()
        for name in STEPS:
            hit = chance.randint(1, 1 if name.startswith(ONCE) else 4 if name.startswith(OFTEN) else 2)
            met[name] = f"hit {hit}: {await dies_at(lab, name, hit)}"
            print(f"{name}: {met[name]}")
    assert met.keys() == set(STEPS)
    print(f"{len(met)} of {len(STEPS)} failpoints hit")
