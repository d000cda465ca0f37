"""The supervisor with real NATS and Redis, and no services."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from promptlooper.cli.stack import Options, free_port_base, planned_parts
from promptlooper.cli.stack_state import Process, StackState, planned_state, read_state
from promptlooper.cli.supervisor import PartFailed, StopSignals, Supervisor
from promptlooper.testing.eventually import eventually

NO_SERVICES = dict.fromkeys(("runner", "adapter", "cache", "scorer"), 0)


@dataclass
class Stack:
    """A supervisor under test, and what it said."""

    data: Path
    said: list[str] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    signals: StopSignals = field(default_factory=StopSignals)
    port_base: int = field(default_factory=lambda: free_port_base(NO_SERVICES))

    async def run(self) -> PartFailed | None:
        parts = planned_parts(NO_SERVICES, self.port_base)
        supervisor = Supervisor(
            Options(self.data, NO_SERVICES, port_base=self.port_base),
            parts,
            planned_state(parts, None),
            emit=lambda name, line: self.said.append(f"{name} | {line}"),
            signals=self.signals,
        )
        return await supervisor.run(lambda _: self.ready.set())

    def state(self) -> StackState:
        state = read_state(self.data)
        assert state is not None
        return state

    def living(self, name: str) -> Process:
        process = self.process(name)
        assert process is not None
        assert process.alive()
        return process

    async def says(self, text: str) -> None:
        await eventually(lambda: any(line.startswith("up | ") and text in line for line in self.said))

    def process(self, name: str) -> Process | None:
        return next(part.process for part in self.state().parts if part.name == name)


@asynccontextmanager
async def running(stack: Stack) -> AsyncIterator[asyncio.Task[PartFailed | None]]:
    """Until the body ends; then it is stopped at once if it still runs."""
    task = asyncio.create_task(stack.run())
    ready = asyncio.create_task(stack.ready.wait())
    try:
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        yield task
    finally:
        ready.cancel()
        stack.signals.receive(signal.SIGTERM)
        stack.signals.receive(signal.SIGTERM)
        await task


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


async def test_a_ready_stack_is_stopped_in_order_by_one_signal(stack: Stack) -> None:
    async with running(stack) as task:
        assert stack.state().phase == "ready"
        processes = [stack.process("nats"), stack.process("redis")]
        assert all(process is not None and process.alive() for process in processes)
        stack.signals.receive(signal.SIGTERM)
        assert await task is None
    assert not any(process is not None and process.alive() for process in processes)
    assert stack.said.index("up | stopping redis") < stack.said.index("up | stopping nats")


@pytest.mark.parametrize("name", ["nats", "redis"])
async def test_a_part_that_dies_is_started_again_and_that_is_said(stack: Stack, name: str) -> None:
    async with running(stack):
        first, other = stack.living(name), stack.living("redis" if name == "nats" else "nats")
        os.kill(first.pid, signal.SIGKILL)
        await stack.says(f"{name} was ended by SIGKILL; it is started again in 0.2 s")
        await eventually(lambda: stack.process(name) not in (None, first))
        second = stack.living(name)
        await stack.says(f"{name} is healthy again, as process {second.pid}")
        assert stack.state().phase == "ready"
        assert other.alive()
    assert not second.alive()


async def test_a_part_that_ends_by_itself_is_started_again_too(stack: Stack) -> None:
    async with running(stack):
        os.kill(stack.living("redis").pid, signal.SIGTERM)
        await stack.says("redis ended with exit code 0; it is started again in 0.2 s")
        await stack.says("redis is healthy again, as process ")


async def test_a_part_that_dies_again_and_again_waits_longer_each_time_until_it_can_start(stack: Stack) -> None:
    async with running(stack):
        (manifest,) = stack.data.glob("redis/appendonlydir/*.manifest")
        right = manifest.read_bytes()
        manifest.write_text("not a manifest\n")
        os.kill(stack.living("redis").pid, signal.SIGKILL)
        for seconds in ("0.4", "0.8", "1.6"):
            await stack.says(f"redis ended with exit code 1; it is started again in {seconds} s")
        assert stack.process("redis") is None
        manifest.write_bytes(right)
        await stack.says("redis is healthy again, as process ")
        assert stack.living("nats").alive()


async def test_a_part_that_cannot_even_be_started_is_tried_again(stack: Stack) -> None:
    async with running(stack):
        folder, away = stack.data / "nats", stack.data / "away"
        folder.rename(away)
        folder.touch()
        os.kill(stack.living("nats").pid, signal.SIGKILL)
        await stack.says(f"nats can't be started: {folder}: File exists; it is started again in 0.4 s")
        folder.unlink()
        away.rename(folder)
        await stack.says("nats is healthy again, as process ")


async def test_nothing_is_started_again_while_stopping(stack: Stack) -> None:
    async with running(stack) as task:
        nats, redis = stack.living("nats"), stack.living("redis")
        os.kill(redis.pid, signal.SIGSTOP)  # it will not hear SIGTERM
        stack.signals.receive(signal.SIGTERM)
        await stack.says("stopping redis")
        os.kill(nats.pid, signal.SIGKILL)
        await eventually(lambda: stack.process("nats") is None)
        os.kill(redis.pid, signal.SIGKILL)
        assert await task is None
    assert [part.process for part in stack.state().parts] == [None, None]
    assert not any("again" in line for line in stack.said)


async def test_a_stack_is_stopped_while_a_part_waits_for_its_next_start(stack: Stack) -> None:
    async with running(stack) as task:
        (stack.data / "nats" / "nats.conf").unlink()
        (stack.data / "nats" / "nats.conf").mkdir()
        os.kill(stack.living("nats").pid, signal.SIGKILL)
        await stack.says("Is a directory; it is started again in 0.8 s")
        stack.signals.receive(signal.SIGINT)
        assert await task is None
    assert "up | stopping redis" in stack.said
    assert "up | stopping nats" not in stack.said
    assert [part.process for part in stack.state().parts] == [None, None]


async def test_a_part_that_does_not_start_stops_everything_and_shows_its_last_lines(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", stack.port_base + 4)):  # where NATS wants to be
        async with running(stack) as task:
            failure = await task
    assert failure is not None
    assert failure.name == "nats"
    assert "ended with exit code 1" in failure.message
    assert "address already in use" in failure.message
    assert not stack.ready.is_set()
    assert [part.process for part in stack.state().parts] == [None, None]


async def test_a_signal_while_starting_stops_without_getting_ready(stack: Stack) -> None:
    stack.signals.receive(signal.SIGINT)
    assert await stack.run() is None
    assert not stack.ready.is_set()
    assert [part.process for part in stack.state().parts] == [None, None]


async def test_a_second_signal_kills_what_does_not_stop(stack: Stack) -> None:
    async with running(stack) as task:
        redis = stack.process("redis")
        assert redis is not None
        os.kill(redis.pid, signal.SIGSTOP)  # it will not hear SIGTERM
        stack.signals.receive(signal.SIGINT)
        await eventually(lambda: "up | stopping redis" in stack.said)
        assert not task.done()
        stack.signals.receive(signal.SIGINT)
        assert await task is None
        assert not redis.alive()
