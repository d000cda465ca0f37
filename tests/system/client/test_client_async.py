"""`AsyncClient` against a real Runner: streams that are cut, single runs, and what is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from promptlooper.client import AsyncClient, Client
from promptlooper.errors import DeadlineExceeded, ExperimentNotFound, InvalidArgument
from promptlooper.experiment import ExperimentState
from promptlooper.run import Event, RunState
from promptlooper.testing.eventually import eventually
from promptlooper.testing.proxy import FaultProxy, fault_proxy

SLOW: dict[str, Any] = {
    "inputs": [{"n": n} for n in range(40)],
    "model": "slow/echo",
    "prompt": "number {{ input.n }}",
    "limits": {"max_concurrency": 2},
    "cache": {"mode": "off"},
}
PERU = {"country": "Peru", "expected": "Peru"}
MANY = SLOW | {
    "model": "mock/echo",
    "inputs": [{"n": n, "text": "x" * 10_000} for n in range(200)],
    "limits": {"max_concurrency": 64},
}


@pytest.fixture
async def proxy(address: str) -> AsyncIterator[FaultProxy]:
    async with fault_proxy(int(address.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture
async def client(address: str, here: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(address) as client:
        yield client


def gapless(events: list[Event]) -> bool:
    return [event.event_seq for event in events] == list(range(1, len(events) + 1))


async def test_a_file_is_run_to_its_end(client: AsyncClient) -> None:
    result = await client.run("capitals.yaml")
    assert result.passed
    outputs = [run.output async for run in result.rows()]
    assert outputs == ["The capital of France", "The capital of Japan"]
    assert (await result.to_pandas()).output.tolist() == outputs
    assert (await result.to_arrow()).column("output").to_pylist() == outputs


async def test_a_watch_goes_on_after_each_of_three_cuts(proxy: FaultProxy, here: Path) -> None:
    async with AsyncClient(proxy.address) as client:
        created = await client.create(SLOW)
        events = []
        async for event in client.watch(created.experiment_id):
            events.append(event)
            if event.event_seq in (30, 60, 90):
                await proxy.cut()
        assert gapless(events)
        assert events[-1].kind == "experiment.completed"
        assert proxy.accepted == 4


async def test_a_blocking_watch_goes_on_too(proxy: FaultProxy, here: Path) -> None:
    loop = asyncio.get_running_loop()

    def watched() -> list[Event]:
        events = []
        with Client(proxy.address) as client:
            for event in client.watch(client.create(SLOW).experiment_id):
                events.append(event)
                if event.event_seq in (30, 90):
                    asyncio.run_coroutine_threadsafe(proxy.cut(), loop).result()
        return events

    events = await asyncio.to_thread(watched)
    assert gapless(events)
    assert events[-1].kind == "experiment.completed"


async def test_rows_go_on_after_a_cut(proxy: FaultProxy, here: Path) -> None:
    async with AsyncClient(proxy.address) as client:
        result = await client.run(MANY)
        indexes = []
        async for run in result.rows():
            indexes.append(run.run_index)
            if len(indexes) in (10, 150):
                await proxy.cut()
        assert indexes == list(range(200))


async def test_a_stream_that_is_left_is_closed(client: AsyncClient) -> None:
    created = await client.create(SLOW)
    before = asyncio.all_tasks()
    async with aclosing(client.watch(created.experiment_id)) as events:
        assert (await anext(events)).kind == "experiment.created"
    async with aclosing(client.follow(created.experiment_id)) as messages:
        assert (await anext(messages)).snapshot is not None
    await eventually(lambda: asyncio.all_tasks() <= before)  # those of gRPC's calls too
    assert (await client.cancel(created.experiment_id)).state in (ExperimentState.CANCELLING, ExperimentState.CANCELLED)


async def test_calls_at_once_open_one_connection(proxy: FaultProxy, here: Path) -> None:
    async with AsyncClient(proxy.address) as client:
        found = await asyncio.gather(*(client.get("gone") for _ in range(20)), return_exceptions=True)
        assert all(isinstance(error, ExperimentNotFound) for error in found)
        assert proxy.accepted == 1
    with pytest.raises(RuntimeError, match="is closed: make a new one"):
        await client.get("gone")
    await client.aclose()


async def test_who_stops_waiting_for_the_connection_leaves_it_to_others(here: Path) -> None:
    client = AsyncClient(home=here / "data")
    first = asyncio.create_task(client.get("gone"))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(ExperimentNotFound):
        await client.get("gone")
    await client.aclose()


async def test_an_embedded_run_goes_on_in_another_client(here: Path) -> None:
    (here / "providers.yaml").write_text("- {name: slow, type: mock, script: [{echo: true, delay: 0.05}]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPTLOOPER_PROVIDERS", "providers.yaml")
        async with AsyncClient(home="data") as client:
            name = (await client.create(SLOW)).experiment_id
            async for event in client.watch(name):
                if event.kind == "run.completed":
                    break
        async with AsyncClient(home="data") as client:
            await client.resume(name)
            assert (await client.wait(name)).passed


async def test_one_run_is_executed_for_its_caller(client: AsyncClient) -> None:
    messages = [message async for message in client.execute("capitals.yaml", row=PERU)]
    assert "".join(message.delta.text for message in messages if message.delta) == "The capital of Peru"
    [stage] = [message.stage for message in messages if message.stage]
    assert stage.output == "The capital of Peru"
    last = messages[-1].run
    assert last is not None
    assert (last.state, last.output) == (RunState.COMPLETED, "The capital of Peru")
    with pytest.raises(InvalidArgument, match="inputs"):
        await anext(client.execute("capitals.yaml"))


async def test_one_run_of_a_stored_experiment(client: AsyncClient) -> None:
    stored = (await client.run("capitals.yaml")).experiment
    [*_, last] = [message async for message in client.execute(stored, row=PERU)]
    assert last.run is not None
    assert last.run.output == "The capital of Peru"
    [stage] = (await client.render(stored, 1)).stages
    assert stage.messages[0].content == "The capital of Japan"
    started = await client.start_run(stored, row=PERU)
    [*_, end] = [message async for message in client.watch_run(started.run_id)]
    assert end.terminal is not None
    assert end.terminal.output == "The capital of Peru"


async def test_a_run_that_takes_too_long_for_its_caller(client: AsyncClient) -> None:
    one = {"model": "slow/echo", "prompt": "well?", "cache": {"mode": "off"}}
    try:
        [*_, last] = [message async for message in client.execute(one, timeout=0.02)]
    except DeadlineExceeded:
        return
    assert last.run is not None  # the Runner's clock was first
    assert last.run.error is not None
    assert last.run.error.reason == "DEADLINE_EXCEEDED"
