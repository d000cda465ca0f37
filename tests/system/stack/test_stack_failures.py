"""What a whole stack loses when parts of it are killed in mid-experiment: time, and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import nats
import psutil
from nats.js.api import AckPolicy, ConsumerConfig
from runner_lab import experiment

from promptlooper.backing import free_port
from promptlooper.clients.runner import RunnerClient, connected
from promptlooper.errors import ServiceUnavailable
from promptlooper.experiment import ExperimentSpec, ExperimentState, InputRow, ModelEntry, Pipeline, ScorerSpec
from promptlooper.run import RunState
from promptlooper.runner.events.relay import STREAM
from promptlooper.testing.eventually import eventually
from promptlooper.testing.provider import FakeProvider, ProviderRequest, Reply
from promptlooper.v1.events_pb2 import Event as EventMessage

if TYPE_CHECKING:
    from stack_lab import CommandLine

ROWS = [{"n": n} for n in range(400)]
SCRIPT = "providers: [{name: slow, type: mock, script: [{echo: true, delay: 0.02}]}]\n"


def asking(model: str, prompt: str, rows: list[object]) -> ExperimentSpec:
    spec = experiment(prompt, rows=rows, limits={"max_concurrency": 200 if len(prompt) < 8 else 6})
    pipeline = Pipeline("direct", spec.pipelines[0].stages, (ModelEntry("m", model),))
    return ExperimentSpec(
        name="test",
        pipelines=(pipeline,),
        inputs=spec.inputs,
        limits=spec.limits,
        scorers=(ScorerSpec("said", "contains", "{{ input.n }}"),),
    )


@asynccontextmanager
async def up(own: CommandLine, *words: str) -> AsyncIterator[RunnerClient]:
    told = await asyncio.to_thread(own, "up", "-d", "--port-base", "0", *words)
    assert told.returncode == 0, told.stderr
    async with connected(await asyncio.to_thread(own.server)) as client:
        yield client


def started(words: list[str], **settings: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, stderr=subprocess.DEVNULL, **settings)


def part(own: CommandLine, name: str) -> psutil.Process:
    return psutil.Process(next(row["pid"] for row in own.status() if row["name"] == name))


async def test_redis_the_cache_and_nats_may_be_killed_in_mid_experiment(own: CommandLine) -> None:
    """Same results, the run completes, a watcher misses nothing, and the stream has every event once."""
    (own.folder / "providers.yaml").write_text(SCRIPT)
    async with up(own, "--providers", "providers.yaml") as client:
        rows = await asyncio.to_thread(own.status)
        pids = {row["name"]: int(row["pid"]) for row in rows}
        nats_address = next(row["address"] for row in rows if row["kind"] == "nats")
        created = await client.create(asking("slow/any", "number {{ input.n }}", ROWS))
        completed, seqs = 0, []
        async for message in client.watch(created.experiment_id):
            if message.event is not None:
                seqs.append(message.event.event_seq)
                completed += message.event.kind == "run.completed"
            if completed == 50 and "redis" in pids:
                os.kill(pids.pop("redis"), signal.SIGKILL)
            if completed == 120 and "nats" in pids:
                os.kill(pids.pop("nats"), signal.SIGKILL)
            if completed == 200 and "cache-0" in pids:
                os.kill(pids.pop("cache-0"), signal.SIGKILL)
        done = message.terminal
        assert done is not None
        assert (done.state, done.counts.completed) == (ExperimentState.COMPLETED, 400)
        assert seqs == list(range(seqs[0], done.event_seq + 1))
        runs = [run async for run in client.export(created.experiment_id)]
        assert [run.output for run in runs] == [f"number {n}" for n in range(400)]
        assert {(run.state, run.score) for run in runs} == {(RunState.COMPLETED, 1.0)}
        stored = await stream_of(nats_address, created.experiment_id, done.event_seq)
        assert stored == list(range(1, done.event_seq + 1))


async def stream_of(address: str, experiment_id: str, count: int) -> list[int]:
    """The numbers of an experiment's events in the JetStream stream, once there are `count`."""
    client = await nats.connect(f"nats://{address}", max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    try:
        jetstream = client.jetstream()
        subject = f"promptlooper.v1.events.*.{experiment_id}.>"

        async def complete() -> bool:
            try:
                info = await jetstream.stream_info(
                    STREAM, subjects_filter=f"promptlooper.v1.events.*.{experiment_id}.>"
                )
            except (nats.errors.Error, TimeoutError) as error:
                raise AssertionError(repr(error)) from error
            return sum((info.state.subjects or {}).values()) >= count

        await eventually(complete, within=30)
        config = ConsumerConfig(ack_policy=AckPolicy.NONE)
        reader = await jetstream.pull_subscribe(subject, stream=STREAM, config=config)
        found: list[int] = []
        while (await reader.consumer_info()).num_pending:
            messages = await reader.fetch(500, timeout=5)
            found += [EventMessage.FromString(message.data).event_seq for message in messages]
        return found
    finally:
        await client.close()


async def test_200_identical_questions_through_the_services_make_one_call(own: CommandLine) -> None:
    async with FakeProvider("fine") as provider:
        own.extra["OPENAI_BASE_URL"] = provider.base_url
        async with up(own) as client:
            rows = [InputRow(f"r{n}", {"n": n}) for n in range(200)]
            created = await client.create(asking("openai/any", "same?", list(rows)))
            done = [message async for message in client.watch(created.experiment_id)][-1].terminal
            assert done is not None
            assert (done.counts.completed, done.counts.cached) == (200, 199)
            assert provider.calls == {"same?": 1}


async def test_when_the_runner_that_leads_is_killed_another_asks_after_the_lease(own: CommandLine) -> None:
    async with FakeProvider(FirstOneHangs()) as provider:
        own.extra["OPENAI_BASE_URL"] = provider.base_url
        async with up(own) as client:
            await client.create(asking("openai/any", "same?", [{"n": 1}]))
            await provider.eventually(lambda it: it.open == 1)
            addresses = {row["kind"]: row["address"] for row in await asyncio.to_thread(own.status)}
            (await asyncio.to_thread(part, own, "runner-0")).kill()
            address = f"127.0.0.1:{free_port()}"
            kinds = ("adapter", "cache", "scorer")
            settings = {f"PROMPTLOOPER_{kind.upper()}_ADDRESS": addresses[kind] for kind in kinds}
            settings |= {
                "PROMPTLOOPER_LISTEN": address,
                "PROMPTLOOPER_HEALTH_LISTEN": f"127.0.0.1:{free_port()}",
                "PROMPTLOOPER_DATABASE_URL": f"sqlite:///{own.folder / 'other.db'}",
            }
            words = [sys.executable, "-m", "promptlooper.runner"]
            other = started(words, env={**own.env, **settings})
            try:
                async with connected(address) as second:
                    created = await eventually_created(second)
                    done = [message async for message in second.watch(created)][-1].terminal
                    assert done is not None
                    assert done.counts.completed == 1
                    assert provider.calls == {"same?": 2}
            finally:
                other.terminate()
                other.wait()


class FirstOneHangs:
    """Answers every question but the first one that comes."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, request: ProviderRequest) -> Reply:
        self.asked += 1
        return Reply("fine", until=asyncio.Event() if self.asked == 1 else None)


async def eventually_created(client: RunnerClient) -> str:
    async def created() -> str:
        try:
            return (await client.create(asking("openai/any", "same?", [{"n": 1}]))).experiment_id
        except ServiceUnavailable as error:
            raise AssertionError(str(error)) from error

    return await eventually(created, within=30)
