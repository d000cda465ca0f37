"""A rolling restart: two replicas of each service, and SIGTERM to each process in turn under load.

Takes about a minute. `make faults` runs it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from fault_checks import Watched, check, event_problems, row_problems, told, watch_problems
from fault_lab import Node, answer_to, answering, backing, priced, started
from runner_lab import experiment, stage

from promptlooper.clients.runner import RunnerClient, connected
from promptlooper.experiment import ExperimentSpec, ModelEntry, Pipeline, ScorerSpec
from promptlooper.experiments import ExperimentFilter
from promptlooper.run import RunState
from promptlooper.testing.provider import FakeProvider

GRACE = 20.0  # seconds: a service's own default
LARGE, SMALL = 300, 3  # runs of an experiment
READERS = 2
T = TypeVar("T")
pytestmark = pytest.mark.timeout(600)


def two_stages(name: str, runs: int) -> ExperimentSpec:
    """Questions that no other experiment asks."""
    spec = experiment(
        f"first {name} {{{{ input.n }}}}",
        stage(f"last {name} {{{{ input.n }}}} after {{{{ prev_output }}}}"),
        rows=[{"n": n} for n in range(runs)],
        limits={"max_concurrency": 8},
        scorers=(ScorerSpec("right", "contains", f"last {name} {{{{ input.n }}}}", threshold=1),),
    )
    pipeline = Pipeline("direct", spec.pipelines[0].stages, (ModelEntry("m", "openai/any"),))
    return ExperimentSpec(
        name=name, pipelines=(pipeline,), inputs=spec.inputs, limits=spec.limits, scorers=spec.scorers
    )


@asynccontextmanager
async def two_of_each(base_url: str) -> AsyncIterator[dict[str, list[Node]]]:
    """Two replicas of each service, by kind; every service reaches both of every other."""
    async with backing() as backs:

        def pair(kind: str, **env: str) -> list[Node]:
            settings = {f"PROMPTLOOPER_{name.upper()}": value for name, value in env.items()}
            # A key of its own tells the provider which Adapter asks.
            return [
                Node(name, f"promptlooper.{kind}", backs.folder, {"OPENAI_API_KEY": name, **settings})
                for name in (f"{kind}-0", f"{kind}-1")
            ]

        kinds = {
            "adapter": pair("adapter", providers=priced(backs.folder, base_url)),
            "cache": pair("cache", redis_url=backs.redis.url),
            "scorer": pair("scorer"),
        }
        addresses = {f"{kind}_address": address_of(nodes) for kind, nodes in kinds.items()}
        kinds["runner"] = pair("runner", database_url=backs.postgres.url, nats_url=backs.nats.url, **addresses)
        async with started([node for nodes in kinds.values() for node in nodes]):
            yield kinds


def address_of(nodes: list[Node]) -> str:
    return ",".join(node.address for node in nodes)


@dataclass
class Load:
    """What clients do all the while, and what came of it."""

    over: asyncio.Event = field(default_factory=asyncio.Event)
    calls: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    runs: int = 0

    async def call(self, name: str, call: Awaitable[T]) -> T:
        self.calls[name] += 1
        try:
            return await call
        except Exception as error:
            self.failed.append(f"{name}: {error!r}")
            raise

    async def large_experiments(self, client: RunnerClient) -> None:
        """One after another, each watched from its start to its end."""
        while not self.over.is_set():
            name = f"large-{self.calls['large']}"
            created = await self.call("large", client.create(two_stages(name, LARGE), name))
            watched = Watched()
            await self.call("watch", watched.follow(client.watch(created.experiment_id)))
            known = await self.call("export", told(client, created.experiment_id))
            check(watch_problems(watched, known.events), event_problems(known.events), row_problems(known))
            assert [run.state for run in known.runs] == [RunState.COMPLETED] * LARGE
            assert [run.output for run in known.runs] == [answer_to(f"last {name} {n}") for n in range(LARGE)]
            assert all(run.passed for run in known.runs)
            self.runs += LARGE

    async def small_experiments(self, client: RunnerClient) -> None:
        while not self.over.is_set():
            name = f"small-{self.calls['create']}"
            created = await self.call("create", client.create(two_stages(name, SMALL), name))
            seen = [message async for message in client.watch(created.experiment_id)]
            page = await self.call("list_runs", client.list_runs(created.experiment_id))
            summary = await self.call("summarize", client.summarize(created.experiment_id))
            assert seen[-1].terminal is not None
            assert [run.state for run in page.runs] == [RunState.COMPLETED] * SMALL
            assert summary.experiment.counts.completed == SMALL
            self.runs += SMALL

    async def reads(self, client: RunnerClient) -> None:
        while not self.over.is_set():
            page = await self.call("list", client.list_experiments(ExperimentFilter()))
            for one in page.experiments[:5]:
                await self.call("get", client.get(one.experiment_id))
            await self.call("list_models", client.list_models())
            await self.call("list_scorers", client.list_scorers())


async def test_no_client_sees_a_rolling_restart(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    load = Load()
    exits: dict[str, tuple[int, float]] = {}
    async with (
        FakeProvider(answering(seed, 0.08, 0.12)) as provider,
        two_of_each(provider.base_url) as kinds,
        connected(address_of(kinds["runner"])) as one,
        connected(address_of(kinds["runner"])) as other,
        connected(address_of(kinds["runner"])) as third,
        asyncio.TaskGroup() as clients,
    ):
        clients.create_task(load.large_experiments(one))
        clients.create_task(load.small_experiments(other))
        for _ in range(READERS):
            clients.create_task(load.reads(third))
        askers = {node.name for node in kinds["adapter"]}
        await provider.eventually(lambda provider: {call.asker for call in provider.history} == askers)
        for node in (node for nodes in kinds.values() for node in nodes):
            since = time.monotonic()
            code = await node.terminate(within=GRACE)
            exits[node.name] = (code, time.monotonic() - since)
            node.start()
            await node.ready()
            await provider.eventually(asked_more(provider, node.name if node.name in askers else ""))
        load.over.set()
    repeated = sum(provider.calls.values()) - len(provider.calls)
    with capsys.disabled():
        print(
            f"\nseed {seed}: {len(exits)} restarts, {load.calls.total()} calls {dict(load.calls)},"
            f" {len(load.failed)} failed; {load.runs} runs; {sum(provider.calls.values())} provider calls,"
            f" {repeated} asked more than once; seconds to exit:"
            f" {', '.join(f'{name} {seconds:.1f}' for name, (_, seconds) in exits.items())}"
        )
    assert not load.failed
    assert {name: code for name, (code, _) in exits.items()} == dict.fromkeys(exits, 0)
    assert len(exits) == 8
    assert len(provider.calls) == 2 * load.runs
    assert repeated == 0


def asked_more(provider: FakeProvider, asker: str) -> Callable[[FakeProvider], bool]:
    """There were 20 more questions, by anyone or by this asker: it is used again."""
    before = len(provider.history)
    return lambda provider: sum(asker in call.asker for call in provider.history[before:]) >= 20
