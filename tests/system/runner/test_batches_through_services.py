"""A Runner and an Adapter as processes, and a provider with batches: killed at every step of a batch, on SQLite and on
PostgreSQL."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from batch_lab import by_batch
from fault_lab import Node, started
from runner_lab import Lab

from promptlooper.clients.runner import RunnerClient, connected
from promptlooper.experiment import CacheMode, CachePolicy, ExperimentSpec, ExperimentState, ModelEntry
from promptlooper.failpoints import NAMES
from promptlooper.testing.eventually import eventually
from promptlooper.testing.wires.openai_batches import OpenAIBatchServer
from promptlooper.testing.wires.server import Said
from promptlooper.testing.wires.wire import Asked

STEPS = [name for name in NAMES if name.startswith("batch_")]
PROVIDERS = """
providers:
  - name: half
    type: openai
    quirks: openai
    base_url: {base_url}
    api_key_env: HALF_KEY
    prices:
      m: {{input_usd_per_mtok: 8, output_usd_per_mtok: 8, batch: {{input_usd_per_mtok: 4, output_usd_per_mtok: 4}}}}
"""
pytestmark = pytest.mark.timeout(180)


def echo(asked: Asked) -> Said:
    return Said(f"<{prompt_of(asked)}>")


def prompt_of(asked: Asked) -> str:
    return str(asked.body["messages"][-1]["content"])


def of_half(spec: ExperimentSpec) -> ExperimentSpec:
    """Of that provider's model, and without the cache, which would hide what is asked twice."""
    (pipeline,) = spec.pipelines
    pipelines = (replace(pipeline, models=(ModelEntry("m", "half/m"),)),)
    return replace(spec, pipelines=pipelines, cache=CachePolicy(CacheMode.OFF))


@asynccontextmanager
async def services(lab: Lab, server: OpenAIBatchServer) -> AsyncIterator[Node]:
    """The Runner, which is not started yet."""
    providers = Path(lab.folder) / "providers.yaml"
    providers.write_text(PROVIDERS.format(base_url=server.base_url))
    adapter = Node(
        "adapter",
        "promptlooper.adapter",
        lab.folder,
        {"PROMPTLOOPER_PROVIDERS": str(providers), "HALF_KEY": "key"},
    )
    runner = Node(
        "runner",
        "promptlooper.runner",
        lab.folder,
        {
            "PROMPTLOOPER_DATABASE_URL": lab.database_url,
            "PROMPTLOOPER_ADAPTER_ADDRESS": adapter.address,
            "PROMPTLOOPER_REPLICA": "runner",
            "PROMPTLOOPER_BATCH_POLL": "0.05",
        },
    )
    async with started([adapter]):
        try:
            yield runner
        except BaseException:
            print(runner.last_words())
            raise
        finally:
            runner.kill()


@asynccontextmanager
async def client_of(runner: Node) -> AsyncIterator[RunnerClient]:
    await runner.ready()
    async with connected(runner.address) as client:
        yield client


async def test_a_runner_may_die_at_every_step_of_a_batch(lab: Lab) -> None:
    spec = of_half(by_batch("a {{ input.n }}", "b {{ prev_output }}", count=4))
    async with OpenAIBatchServer(echo) as server, services(lab, server) as runner:
        experiment_id = ""
        for step in STEPS:
            runner.start(PROMPTLOOPER_FAILPOINTS=f"{step}=kill@1")
            if not experiment_id:
                async with client_of(runner) as client:
                    experiment_id = (await client.create(spec)).experiment_id
            assert await runner.ended() == -signal.SIGKILL
            assert runner.said(f"failpoint {step}: kill at hit 1")
        runner.start()
        async with client_of(runner) as client:
            watched = [message async for message in client.watch(experiment_id)]
            runs = [run async for run in client.export(experiment_id)]
    assert watched[-1].terminal is not None
    assert watched[-1].terminal.state is ExperimentState.COMPLETED
    answered = Counter(prompt_of(asked) for asked in server.asked)
    assert answered == Counter([f"a {n}" for n in range(4)] + [f"b <a {n}>" for n in range(4)])
    assert [run.output for run in runs] == [f"<b <a {n}>>" for n in range(4)]
    assert all(stage.batched for run in runs for stage in run.stages)
    tokens = sum(run.tokens_in + run.tokens_out for run in runs)
    assert sum(run.cost_nanousd or 0 for run in runs) == 4_000 * tokens > 0


async def test_what_expired_in_a_batch_is_asked_directly_at_the_full_price(lab: Lab) -> None:
    spec = of_half(by_batch("{{ input.n }}", count=3))
    async with OpenAIBatchServer(echo, hold=True) as server, services(lab, server) as runner:
        runner.start()
        async with client_of(runner) as client:
            assert (await client.validate(of_half(by_batch("x", params={"max_tokens": 5})))).estimated_cost_nanousd
            created = await client.create(spec)
            await eventually(lambda: server.batches)
            server.finish(end="expired", answered=1)
            async for _ in client.watch(created.experiment_id):
                pass
            runs = [run async for run in client.export(created.experiment_id)]
    by_price = {run.stages[0].batched: (run.cost_nanousd or 0) // (run.tokens_in + run.tokens_out) for run in runs}
    assert sorted(run.stages[0].batched for run in runs) == [False, False, True]
    assert by_price == {True: 4_000, False: 8_000}
