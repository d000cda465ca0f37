"""ExecuteRun from a gRPC client through the Runner and the Adapter to a provider over HTTP, and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
from runner_lab import Lab, experiment

from promptlooper.adapter import servicer as adapter_servicer
from promptlooper.adapter.app import gateway_from
from promptlooper.clients import adapter as adapters
from promptlooper.clients import runner as runners
from promptlooper.errors import DeadlineExceeded
from promptlooper.experiment import CacheMode, CachePolicy, ModelEntry, Pipeline
from promptlooper.experiments import Execution
from promptlooper.rpc.client import open_channel
from promptlooper.rpc.server import serving
from promptlooper.runner import servicer as runner_servicer
from promptlooper.runner.store.migrate import upgrade
from promptlooper.sources import RunTarget
from promptlooper.testing.provider import FakeProvider, Reply
from promptlooper.v1 import runner_service_pb2 as pb
from promptlooper.v1.runner_service_pb2_grpc import RunnerServiceStub
from promptlooper.wire.single_runs import target_to_pb

SPEC = experiment("{{ input.n }}", cache=CachePolicy(CacheMode.OFF))
SPEC = experiment(
    "{{ input.n }}",
    cache=CachePolicy(CacheMode.OFF),
    pipelines=(Pipeline("p", SPEC.pipelines[0].stages, (ModelEntry("m", "openai/m"),)),),
)


@asynccontextmanager
async def serving_runner(folder: Path, fake: FakeProvider) -> AsyncIterator[str]:
    """The Runner's address."""
    url = f"sqlite:///{folder / 'promptlooper.db'}"
    upgrade(url)
    async with fake, gateway_from(env={"OPENAI_BASE_URL": fake.base_url}) as gateway:
        register = adapter_servicer.AdapterServicer(gateway).register
        services = {adapter_servicer.SERVICE_NAME: register}
        async with (
            serving("127.0.0.1:0", services, health_listen="127.0.0.1:0", grace=0.0) as adapter,
            adapters.connected(f"127.0.0.1:{adapter.port}") as client,
        ):
            lab = Lab(url, folder)
            lab.model = client  # type: ignore[assignment]
            async with lab.runner() as core:
                services = {runner_servicer.SERVICE_NAME: partial(runner_servicer.register, core=core)}
                async with serving("127.0.0.1:0", services, health_listen="127.0.0.1:0", grace=0.0) as runner:
                    yield f"127.0.0.1:{runner.port}"


async def test_pieces_reach_the_client_while_the_provider_still_speaks(tmp_path: Path) -> None:
    go = asyncio.Event()
    fake = FakeProvider(Reply("one two three", pause=go))
    async with serving_runner(tmp_path, fake) as address, runners.connected(address) as client:
        messages = client.execute_run(RunTarget(SPEC), 30.0)
        first = await anext(messages)
        assert first.delta is not None
        assert first.delta.text == "one "
        assert fake.open == 1
        go.set()
        rest = [message async for message in messages]
    text = "".join(message.delta.text for message in rest if message.delta is not None)
    assert text == "two three"
    assert rest[-1].run is not None
    assert rest[-1].run.output == "one two three"
    assert rest[-1].run.stages[0].ttft_ms is not None


async def test_a_client_that_goes_hangs_up_on_the_provider(tmp_path: Path) -> None:
    fake = FakeProvider(Reply("one two", pause=asyncio.Event()))
    async with serving_runner(tmp_path, fake) as address, open_channel(address) as channel:
        call = RunnerServiceStub(channel).ExecuteRun(pb.ExecuteRunRequest(target=target_to_pb(RunTarget(SPEC))))
        await call.read()
        call.cancel()
        async with asyncio.timeout(10):
            await fake.eventually(lambda f: f.hung_up == 1 and f.open == 0)


async def ending(messages: AsyncIterator[Execution]) -> str:
    """Why it ended: the call's reason, or the run's where the Runner's clock was first."""
    try:
        found = [message async for message in messages]
    except DeadlineExceeded as error:
        return error.reason
    run = found[-1].run
    assert run is not None
    return run.error.reason if run.error is not None else ""


async def test_a_clients_deadline_ends_the_providers_call(tmp_path: Path) -> None:
    fake = FakeProvider(Reply("one two", pause=asyncio.Event()))
    async with serving_runner(tmp_path, fake) as address, runners.connected(address) as client:
        assert await ending(client.execute_run(RunTarget(SPEC), 0.5)) == "DEADLINE_EXCEEDED"
        async with asyncio.timeout(10):
            await fake.eventually(lambda f: f.hung_up == 1 and f.open == 0)


async def test_a_target_that_is_not_there_is_an_error_of_the_call(tmp_path: Path) -> None:
    fake = FakeProvider("fine")
    async with serving_runner(tmp_path, fake) as address, open_channel(address) as channel:
        stub = RunnerServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.ExecuteRun(pb.ExecuteRunRequest(target=pb.RunTarget(experiment_id="nothing"))).read()
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert fake.requests == []
