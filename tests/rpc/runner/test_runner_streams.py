"""Watches and exports: they go on where they were."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest

from promptlooper.clients.runner import RunnerClient
from promptlooper.errors import (
    DeadlineExceeded,
    Draining,
    ExperimentNotFound,
    ResumeTokenExpired,
    ServiceUnavailable,
    StoreUnavailable,
)
from promptlooper.rpc.client import open_channel
from promptlooper.v1 import runner_service_pb2 as pb
from promptlooper.v1.runner_service_pb2_grpc import RunnerServiceStub


def told(messages: list[Any]) -> list[str]:
    kinds = ("snapshot", "event", "bookmark", "terminal")
    return [f"{next(kind for kind in kinds if getattr(m, kind))} {m.event_seq}" for m in messages]


WHOLE = ["snapshot 0", "event 1", "event 2", "event 3", "bookmark 4", "event 5", "event 6", "terminal 6"]


async def test_watch_gives_snapshot_events_bookmark_and_terminal(runner: Any, known: Any) -> None:
    messages = [message async for message in runner.client.watch("exp1", kinds=["run.started"], bookmark_interval=0.25)]
    assert told(messages) == WHOLE
    assert (messages[0].snapshot, messages[4].bookmark) == (known["experiment"], known["experiment"])
    assert messages[-1].terminal == known["ended"]
    assert (messages[1].event.run_id, messages[1].resume_token) == ("exp1-1", "1")
    assert runner.core.calls == [("watch", "exp1", "", ["run.started"], 0.25)]


async def test_watch_goes_on_from_a_token(runner: Any) -> None:
    messages = [message async for message in runner.client.watch("exp1", "4")]
    assert told(messages) == WHOLE[5:]
    assert runner.core.calls == [("watch", "exp1", "4", [], None)]


@pytest.mark.parametrize("cut_with", [StoreUnavailable("down"), Draining("leaving"), ServiceUnavailable("x"), None])
async def test_watch_that_is_cut_goes_on_without_losing_or_doubling(runner: Any, cut_with: Any) -> None:
    runner.core.cut_after = [2, 0, 3]
    runner.core.cut_with = cut_with
    assert told([message async for message in runner.client.watch("exp1")]) == WHOLE
    assert [call[2] for call in runner.core.calls] == ["", "2", "2", "5"]


async def test_watch_survives_a_restart_of_the_server(runner_with: Any, new_core: Any) -> None:
    before, after = new_core(), new_core()
    before.events = 3
    before.held.set()
    messages = []
    async with runner_with(before) as first:
        port, address = first.port, first.address
        channel_context = open_channel(address)
        channel = await channel_context.__aenter__()
        watch = RunnerClient(channel, address).watch("exp1")
        for _ in range(4):
            messages.append(await anext(watch))
    async with runner_with(after, port=port):
        messages += [message async for message in watch]
        await channel_context.__aexit__(None, None, None)
    assert told(messages) == WHOLE
    assert after.calls == [("watch", "exp1", "3", [], None)]


async def test_watch_goes_on_at_another_runner_when_its_own_leaves(runner_with: Any, new_core: Any) -> None:
    cores = [new_core(), new_core()]
    for core in cores:
        core.events = 3
        core.held.set()
    async with AsyncExitStack() as stack:
        runners = [runner_with(core) for core in cores]
        running = [await runner.__aenter__() for runner in runners]
        address = ",".join(one.address for one in running)
        channel = await stack.enter_async_context(open_channel(address))
        watch = await stack.enter_async_context(aclosing(RunnerClient(channel, address).watch("exp1")))
        messages = [await anext(watch) for _ in range(4)]
        first = 0 if cores[0].calls else 1
        other = cores[1 - first]
        other.events = 6
        other.held.clear()
        await runners[first].__aexit__(None, None, None)
        stack.push_async_exit(runners[1 - first])
        messages += [message async for message in watch]
    assert told(messages) == WHOLE
    assert len(cores[first].calls) == 1
    assert other.calls == [("watch", "exp1", "3", [], None)]


@pytest.mark.parametrize("cut_with", [StoreUnavailable("the database is down"), None])
async def test_watch_without_a_message_for_too_long_gives_up(runner: Any, cut_with: Any) -> None:
    runner.core.cut_after = [1, 0]
    runner.core.cut_with = cut_with
    client = RunnerClient(runner.channel, runner.address, reconnect_for=0.0)
    watch = client.watch("exp1")
    assert told([await anext(watch), await anext(watch)]) == WHOLE[:2]
    with pytest.raises(ServiceUnavailable, match="the database is down" if cut_with else "before its end"):
        await anext(watch)


async def test_watch_of_a_server_that_is_not_there_gives_up(unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    async with open_channel(address) as channel:
        watch = RunnerClient(channel, address, reconnect_for=0.0).watch("exp1")
        with pytest.raises(ServiceUnavailable, match="no runner answers"):
            await anext(watch)


@pytest.mark.parametrize(
    "error", [ExperimentNotFound("no", experiment_id="x"), ResumeTokenExpired("gone", earliest_event_seq="9")]
)
async def test_error_that_another_attempt_does_not_mend_ends_the_watch(runner: Any, error: Any) -> None:
    runner.core.error = error
    with pytest.raises(type(error)) as caught:
        await anext(runner.client.watch("exp1", "5"))
    assert caught.value.metadata == error.metadata
    assert len(runner.core.calls) == 1


async def test_watch_that_its_reader_leaves_ends_in_the_core(runner: Any) -> None:
    runner.core.held.set()
    async with aclosing(runner.client.watch("exp1")) as watch:
        await anext(watch)
    await asyncio.wait_for(runner.core.closed.wait(), 10)


async def test_export_gives_every_run_in_few_messages(runner: Any, known: Any) -> None:
    runner.core.runs = 450
    runs = [run async for run in runner.client.export("exp1", 10)]
    assert runs == [known["run_of"](index) for index in range(10, 450)]
    assert runner.core.calls == [("export", "exp1", 10)]
    call = RunnerServiceStub(runner.channel).ExportRuns(pb.ExportRunsRequest(experiment_id="exp1"))
    assert [len(response.runs) async for response in call] == [200, 200, 50]


async def test_export_message_ends_at_a_mebibyte(runner: Any) -> None:
    runner.core.output = "x" * 400_000
    call = RunnerServiceStub(runner.channel).ExportRuns(pb.ExportRunsRequest(experiment_id="exp1"))
    assert [len(response.runs) async for response in call] == [2, 2, 2]


async def test_export_of_nothing_is_empty(runner: Any) -> None:
    runner.core.runs = 0
    assert [run async for run in runner.client.export("exp1")] == []


@pytest.mark.parametrize("cut_with", [StoreUnavailable("down"), ServiceUnavailable("cut"), DeadlineExceeded("slow")])
async def test_export_that_is_cut_goes_on_without_losing_or_doubling(runner: Any, cut_with: Any) -> None:
    runner.core.output = "x" * 600_000  # a message each, so that some arrive before the cut
    runner.core.cut_after = [3, 0, 2]
    runner.core.cut_with = cut_with
    assert [run.run_index async for run in runner.client.export("exp1")] == [0, 1, 2, 3, 4, 5]
    assert runner.core.calls[0] == ("export", "exp1", 0)
    assert len(runner.core.calls) == 4


async def test_export_of_what_is_not_there_is_refused(runner: Any) -> None:
    runner.core.error = ExperimentNotFound("there is no experiment 'x'", experiment_id="x")
    with pytest.raises(ExperimentNotFound) as caught:
        await anext(runner.client.export("x"))
    assert caught.value.metadata == {"experiment_id": "x"}
