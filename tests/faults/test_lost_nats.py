"""B4: NATS is killed and its storage deleted in mid-experiment, then started."""

from __future__ import annotations

import asyncio
import shutil
from functools import partial

import pytest
from fault_checks import (
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
)
from fault_checks import watch_problems as problems_of
from fault_lab import answering, cluster, running
from fault_specs import MAX_CONCURRENCY, three_stages
from fault_stream import whole_stream

from promptlooper.testing.eventually import eventually
from promptlooper.testing.provider import FakeProvider

RUNS, RUNNERS = 300, 2
pytestmark = pytest.mark.timeout(600)


def told_of(watches: list[Watched], events: int) -> bool:
    return all(len(watched.events) >= events for watched in watches)


async def test_an_experiment_does_not_notice_that_nats_lost_everything(seed: int) -> None:
    async with FakeProvider(answering(seed, 0.05, 0.4)) as provider, cluster(provider, runners=RUNNERS) as lab:
        async with lab.client(lab.runners[0]) as first, lab.client(lab.runners[1]) as second:
            quiet = await undisturbed(first, three_stages(RUNS))
            provider.history.clear()
            created = await first.create(three_stages(RUNS), "nats-is-lost")
            watches = [Watched(), Watched()]
            async with asyncio.TaskGroup() as tasks:
                for watched, client in zip(watches, (first, second), strict=True):
                    tasks.create_task(watched.follow(client.watch(created.experiment_id)))
                await eventually(partial(told_of, watches, RUNS), within=60)
                lab.nats.kill()
                shutil.rmtree(lab.nats.data / "jetstream")
                at_the_kill = (await first.get(created.experiment_id)).event_seq
                before = len(watches[0].events)
                await eventually(partial(told_of, watches, 3 * RUNS), within=60)
                assert watches[0].terminal is None, "the experiment ended before NATS came back"
                without = len(watches[0].events) - before
                await running(lab.nats)
            known = await told(first, created.experiment_id)
        last = known.experiment.event_seq
        again = await whole_stream(lab.nats.url, created.experiment_id, last)
        calls = calls_of(provider.history, (), known.runs, known_commits(watches[0], known.events))
        check(
            *(problems_of(watched, known.events) for watched in watches),
            event_problems(known.events),
            row_problems(known),
            result_problems(known.runs, quiet.runs),
            total_problems(known.experiment, quiet.experiment),
            calls.problems,
        )
        assert again[0] <= at_the_kill + 1, f"events {at_the_kill + 1} to {again[0] - 1} are in no stream"
        assert provider.most_open <= MAX_CONCURRENCY
        assert again == list(range(again[0], last + 1)), "the stream has gaps or repeats"
        print(
            f"{last} events, {without} of them without NATS: both watchers saw each once; {calls.calls} calls, none"
            f" repeated; the new stream has events {again[0]} to {again[-1]}, each once"
        )
