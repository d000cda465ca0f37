"""Many watchers, and slow ones: what they cost the Runner."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from runner_lab import Lab, experiment
from watch_lab import NEVER, on_the_wire, own_connections, watched_runner

from promptlooper.runner.events.hub import Hub
from promptlooper.testing.eventually import eventually
from promptlooper.v1 import runner_service_pb2 as pb
from promptlooper.v1.runner_service_pb2_grpc import RunnerServiceStub

WATCHERS = 500
PER_CONNECTION = 100
MIB = 1024 * 1024


async def test_500_idle_watchers_cost_one_read_a_poll_and_hear_the_next_event(lab: Lab) -> None:
    lab.model.go.clear()
    async with watched_runner(lab, Hub(0.02)) as runner, on_the_wire(runner.core) as address:
        async with own_connections(address, WATCHERS // PER_CONNECTION) as clients:
            created = await runner.core.create(experiment("x"))
            await lab.model.called.wait()
            watches = [clients[n // PER_CONNECTION].watch(created.experiment_id) for n in range(WATCHERS)]
            snapshots = await asyncio.gather(*(anext(watch) for watch in watches))
            assert {message.event_seq for message in snapshots} == {snapshots[0].event_seq}
            heard = [asyncio.ensure_future(anext(watch)) for watch in watches]
            await eventually(lambda: runner.database.reads["start_of_watch"] == WATCHERS)

            before = runner.database.reads.copy()
            await eventually(lambda: runner.database.reads["news_after"] >= before["news_after"] + 20)
            assert (await clients[0].get(created.experiment_id)).event_seq == snapshots[0].event_seq
            assert (await clients[-1].list_models()) == []
            idle = runner.database.reads - before
            # Only the tail reads, once a poll; what one `get` and the engine read does not grow with the watchers.
            assert (idle["start_of_watch"], idle["page_after"], idle["get"]) == (0, 0, 1)
            assert max(idle.values()) < WATCHERS / 4
            assert not any(watch.done() for watch in heard)

            await runner.append(created.experiment_id, 1)
            messages = await asyncio.gather(*heard)
            assert {message.event_seq for message in messages} == {snapshots[0].event_seq + 1}
            assert (runner.database.reads - before)["page_after"] == 0
            await asyncio.gather(*(watch.aclose() for watch in watches))
        await eventually(lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("tail of")])


async def test_a_tail_reads_only_on_news_or_after_the_poll(lab: Lab) -> None:
    lab.model.go.clear()
    async with watched_runner(lab, Hub(NEVER)) as runner:
        created = await runner.core.create(experiment("x"))
        await lab.model.called.wait()
        watches = [runner.core.watch(created.experiment_id) for _ in range(50)]
        (start,) = {(await anext(watch)).event_seq for watch in watches}
        waits = [asyncio.ensure_future(anext(watch)) for watch in watches]
        await eventually(lambda: runner.database.reads["news_after"])
        before = runner.database.reads["news_after"]

        async def has_read(times: int) -> None:
            await eventually(lambda: runner.database.reads["news_after"] == before + times)

        for batch in range(5):
            await runner.append(created.experiment_id, 3)
            await has_read(batch + 1)
        assert {(await wait).event_seq for wait in waits} == {start + 1}
        assert runner.database.reads["page_after"] == 0
        for watch in watches:
            await watch.aclose()


class ServerProcess:
    """`tests/watch_server.py`."""

    def __init__(self, process: asyncio.subprocess.Process, started: dict[str, Any]) -> None:
        self._process = process
        self.address, self.experiment_id = started["address"], started["experiment_id"]

    async def asked(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        return await answer_of(self._process)


async def answer_of(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    answer: dict[str, Any] = json.loads(await process.stdout.readline())
    return answer


@asynccontextmanager
async def server_process(database_url: str, folder: Path) -> AsyncIterator[ServerProcess]:
    script = Path(__file__).parents[2] / "watch_server.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        database_url,
        str(folder),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(script.parent)},
    )
    try:
        yield ServerProcess(process, await answer_of(process))
    finally:
        process.terminate()
        await process.wait()


async def test_a_reader_of_almost_nothing_costs_the_server_little_and_gets_everything_in_the_end(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with server_process(lab.database_url, tmp_path) as server:
        request = pb.WatchExperimentRequest(experiment_id=server.experiment_id)
        async with (
            own_connections(server.address, 2) as (fast, _),
            grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
        ):
            # What the server needs for 10,000 events and a fast reader.
            async with aclosing(fast.watch(server.experiment_id)) as watch:
                start = (await anext(watch)).event_seq
                flow = asyncio.ensure_future(server.asked("10000"))
                async for message in watch:
                    if message.event_seq == start + 10_000:
                        break
                before = await flow
            slow = aiter(RunnerServiceStub(channel).WatchExperiment(request))
            assert (await anext(slow)).snapshot.event_seq == start + 10_000
            after = await server.asked("10000")
            first = await anext(slow)
            assert first.event_seq == start + 10_001
            after = await server.asked("rss")
            cost = (after["rss"] - before["rss"]) / MIB
            with capsys.disabled():
                print(f"\na reader that stands still while 10,000 events flow costs {cost:.1f} MiB")
            assert cost < 20
            await server.asked("end")
            heard = [first.event_seq]
            async for response in slow:
                if response.HasField("event"):
                    heard.append(response.event_seq)
            assert response.HasField("terminal")
            assert heard == list(range(start + 10_001, response.event_seq + 1))
