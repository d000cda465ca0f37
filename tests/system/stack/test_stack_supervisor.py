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


async def test_a_part_that_dies_is_logged_with_how_it_ended_and_the_rest_goes_on(stack: Stack) -> None:
    async with running(stack):
        nats = stack.process("nats")
        assert nats is not None
        os.kill(nats.pid, signal.SIGKILL)
        await eventually(lambda: "up | nats was ended by SIGKILL" in stack.said)
        assert stack.process("nats") is None
        redis = stack.process("redis")
        assert redis is not None
        assert redis.alive()


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
