"""Many watchers, and slow ones: what they cost the Runner."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from runner_lab import Lab, experiment
from watch_lab import NEVER, own_channels, own_connections, watched_runner

from promptlooper.clients.runner import RunnerClient
from promptlooper.runner.events.hub import LOOK_AGAIN, Hub
from promptlooper.testing.eventually import eventually
from promptlooper.v1 import runner_service_pb2 as pb
from promptlooper.v1.runner_service_pb2_grpc import RunnerServiceStub

WATCHERS = 500
PER_CONNECTION = 100
MB = 1_000_000
MOST = 20  # MB that slow readers may cost
EVENTS, PADDING = 10_000, 4_096  # far more than that, were they kept for a reader
WARMING = 200  # events before
STEP = 100  # events for each message that the slow reader takes: as one message a second, of 100 events a second


class ServerProcess:
    """`tests/watch_server.py`."""

    def __init__(self, process: asyncio.subprocess.Process, started: dict[str, Any]) -> None:
        self._process = process
        self.address, self.experiment_id = started["address"], started["experiment_id"]

    async def asked(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        return await answer_of(self._process)

    async def reads(self) -> Counter[str]:
        return Counter((await self.asked("cost"))["reads"])

    async def has_read(self, name: str, times: int) -> None:
        async def enough() -> bool:
            return (await self.reads())[name] >= times

        await eventually(enough)


async def answer_of(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    answer: dict[str, Any] = json.loads(await process.stdout.readline())
    return answer


@asynccontextmanager
async def server_process(
    database_url: str, folder: Path, *, look_again: float = LOOK_AGAIN
) -> AsyncIterator[ServerProcess]:
    script = Path(__file__).parents[2] / "watch_server.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        database_url,
        str(folder),
        str(look_again),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(script.parent)},
    )
    try:
        yield ServerProcess(process, await answer_of(process))
    finally:
        process.terminate()
        await process.wait()


async def test_500_idle_watchers_cost_one_read_a_poll_and_hear_the_next_event(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with server_process(lab.database_url, tmp_path, look_again=0.02) as server:
        async with own_connections(server.address, WATCHERS // PER_CONNECTION) as clients:
            alone = await server.asked("cost")
            watches = [clients[n // PER_CONNECTION].watch(server.experiment_id) for n in range(WATCHERS)]
            snapshots = await asyncio.gather(*(anext(watch) for watch in watches))
            assert {message.event_seq for message in snapshots} == {snapshots[0].event_seq}
            heard = [asyncio.ensure_future(anext(watch)) for watch in watches]
            await server.has_read("start_of_watch", WATCHERS)

            before = await server.reads()
            assert before["start_of_watch"] == WATCHERS
            await server.has_read("news_after", before["news_after"] + 20)
            assert (await clients[0].get(server.experiment_id)).event_seq == snapshots[0].event_seq
            assert (await clients[-1].list_models()) == []
            idle = await server.reads() - before
            # Only the tail reads, once a poll; what one `get` and the engine read does not grow with the watchers.
            assert (idle["start_of_watch"], idle["page_after"], idle["get"]) == (0, 0, 1)
            assert max(idle.values()) < WATCHERS / 4
            assert not any(watch.done() for watch in heard)
            now = await server.asked("cost")
            assert now["tails"] == 1
            memory = (now["rss"] - alone["rss"]) / MB
            with capsys.disabled():
                print(
                    f"\n{WATCHERS} idle watchers cost the server {memory:.1f} MB ({alone['rss'] / MB:.0f} MB without"
                    f" them), and in {idle['news_after']} polls these reads of SQL, with the engine's: {dict(idle)}"
                )

            await server.asked("1 0")
            messages = await asyncio.gather(*heard)
            assert {message.event_seq for message in messages} == {snapshots[0].event_seq + 1}
            assert (await server.reads() - before)["page_after"] == 0
            await asyncio.gather(*(watch.aclose() for watch in watches))

            async def has_no_tail() -> bool:
                return (await server.asked("cost"))["tails"] == 0

            await eventually(has_no_tail)


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


async def test_readers_of_almost_nothing_cost_the_server_little_and_get_everything_in_the_end(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with server_process(lab.database_url, tmp_path) as server, own_channels(server.address, 3) as channels:
        # Few events, so that what the server needs in any case is there, and no freed memory hides what comes.
        async with aclosing(RunnerClient(channels[0], server.address).watch(server.experiment_id)) as watch:
            start = (await anext(watch)).event_seq + WARMING
            await server.asked(f"{WARMING} {PADDING}")
            while (await anext(watch)).event_seq < start:
                pass
        before = (await server.asked("cost"))["rss"]

        async def costs(line: str = "cost") -> float:
            return ((await server.asked(line))["rss"] - before) / MB

        # Not a RunnerClient: it would come again, and what is wanted is one call to the end.
        request = pb.WatchExperimentRequest(experiment_id=server.experiment_id)
        still, slow = (aiter(RunnerServiceStub(channel).WatchExperiment(request)) for channel in channels[1:])
        for reader in (still, slow):
            assert (await anext(reader)).snapshot.event_seq == start
        flowing: list[float] = []
        heard = []
        for _ in range(EVENTS // STEP):
            flowing.append(await costs(f"{STEP} {PADDING}"))
            heard.append((await anext(slow)).event_seq)
        assert heard == list(range(start + 1, start + 1 + EVENTS // STEP))
        flowing.append(await costs())

        catching_up = [await costs("end")]
        for reader, seqs in ((still, []), (slow, heard)):
            async for response in reader:
                if response.HasField("event"):
                    seqs.append(response.event_seq)
                    if len(seqs) % 1_000 == 0:
                        catching_up.append(await costs())
            assert response.HasField("terminal")
            assert seqs == list(range(start + 1, response.event_seq + 1))
            assert len(seqs) > EVENTS
        with capsys.disabled():
            print(
                f"\none reader that stands still and one that takes 1 message per {STEP} events cost the server"
                f" {max(flowing):.1f} MB together while {EVENTS:,} events ({EVENTS * PADDING / MB:.0f} MB) flow and"
                f" {max(catching_up):.1f} MB while they catch up ({before / MB:.0f} MB before)"
            )
        assert max(flowing + catching_up) < MOST
