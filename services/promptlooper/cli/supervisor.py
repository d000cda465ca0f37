"""Runs the parts of a stack as child processes: starts them, waits until they are healthy, and stops them in order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from promptlooper.backing import NatsServer, RedisServer, dies_with_parent
from promptlooper.cli.probe import is_healthy
from promptlooper.cli.stack import MIGRATION, SERVICES, STOP_ORDER, Options, Part, environment_of
from promptlooper.cli.stack_log import LINES, SUPERVISOR, Emit, lines_of
from promptlooper.cli.stack_state import StackState, ownership, planned_state, process_of, remove_state, write_state
from promptlooper.errors import DomainError

_BACKING = tuple(kind for kind in STOP_ORDER if kind not in SERVICES)
_WAVES = (_BACKING, SERVICES)
_READY_SECONDS = 60.0
_POLL_SECONDS = 0.05
_TAIL_LINES = 20
# Above the 20 s that a service gives the calls it is busy with.
_STOP_SECONDS = 25.0
_LAST_WORDS_SECONDS = 1.0


def run_stack(
    options: Options,
    parts: tuple[Part, ...],
    *,
    log: Path | None,
    emit: Emit,
    on_ready: Callable[[StackState], None],
) -> signal.Signals:
    """Runs a stack until a signal ends it, and says which. `log` is where `emit` writes, if that is a file.

    Raises AlreadyRunning where the data folder has a stack, and PartFailed where a part does not become healthy.
    """

    async def supervised() -> signal.Signals:
        signals = StopSignals()
        signals.install(asyncio.get_running_loop())
        state = planned_state(parts, log)
        failure = await Supervisor(options, parts, state, emit=emit, signals=signals).run(on_ready)
        if failure is not None:
            raise failure
        assert signals.first is not None
        return signals.first

    with ownership(options.data):
        try:
            return asyncio.run(supervised())
        finally:
            remove_state(options.data)


class PartFailed(DomainError):
    """A part did not become healthy. `tail` is the last it said."""

    def __init__(self, name: str, what: str, tail: Sequence[str]) -> None:
        said = "\n".join(f"  {name} | {line}" for line in tail) or "  (nothing)"
        super().__init__(f"{name} {what}; everything was stopped again. The last it said:\n{said}")
        self.name = name
        self.tail = tuple(tail)


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP: the first asks to stop in order, the second to stop at once."""

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self.stop = asyncio.Event()
        self.kill = asyncio.Event()

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.receive, number)

    def receive(self, number: signal.Signals) -> None:
        if self.first is None:
            self.first = number
            self.stop.set()
        else:
            self.kill.set()


@dataclass(slots=True)
class _Child:
    part: Part
    process: asyncio.subprocess.Process
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def how_it_ended(self) -> str:
        code = self.process.returncode
        assert code is not None
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def signal_group(self, number: signal.Signals) -> None:
        """Each child leads a process group of its own, so this reaches what it started, too."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Supervisor:
    """Owns the processes of one stack and keeps its state file true."""

    def __init__(
        self,
        options: Options,
        parts: tuple[Part, ...],
        state: StackState,
        *,
        emit: Emit,
        signals: StopSignals,
    ) -> None:
        self._options = options
        self._parts = parts
        self._state = state
        self._emit = emit
        self._signals = signals
        self._verbose = os.environ.get("PROMPTLOOPER_LOG_LEVEL", "").lower() == "debug"
        self._children: list[_Child] = []
        self._failure: PartFailed | None = None
        self._stopping = False

    async def run(self, on_ready: Callable[[StackState], None]) -> PartFailed | None:
        """Until a signal, or until a part fails to start: then says which. Nothing runs any more when it returns."""
        self._note(self._state)
        async with asyncio.TaskGroup() as watches:
            try:
                await self._start(watches)
                if self._starting:
                    self._note(replace(self._state, phase="ready"))
                    on_ready(self._state)
                    await self._signals.stop.wait()
            finally:
                await self._stop()
        return self._failure

    @property
    def _starting(self) -> bool:
        return self._failure is None and not self._signals.stop.is_set()

    async def _start(self, watches: asyncio.TaskGroup) -> None:
        if not self._options.sqlite:
            await self._migrate(watches)
        for wave in _WAVES:
            children = [
                await self._spawn(part, watches) for part in self._parts if part.kind in wave and self._starting
            ]
            await asyncio.gather(*(self._until_healthy(child) for child in children))

    async def _migrate(self, watches: asyncio.TaskGroup) -> None:
        child = await self._spawn(MIGRATION, watches)
        await _first_of(child.ended.wait(), self._signals.stop.wait())
        if child.ended.is_set() and child.process.returncode != 0:
            self._fail(child, child.how_it_ended)

    async def _spawn(self, part: Part, watches: asyncio.TaskGroup) -> _Child:
        argv, env = command_of(part, self._options), environment_of(part, self._parts, self._options)
        # A pipe of our own, so that waiting for the process does not also wait for what holds its output open.
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # else a Ctrl-C in the terminal would reach the parts before us
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        child = _Child(part, process)
        self._children.append(child)
        self._note(self._state.with_process(part.name, process_of(process.pid)))
        watches.create_task(self._watch(child, reading))
        return child

    async def _watch(self, child: _Child, reading: int) -> None:
        """Passes on what a part says, and notes its end."""
        saying = asyncio.create_task(self._pass_on(child, reading))
        await child.process.wait()
        child.signal_group(signal.SIGKILL)  # what it started and left behind
        await asyncio.wait({saying}, timeout=_LAST_WORDS_SECONDS)
        saying.cancel()
        child.ended.set()
        self._note(self._state.with_process(child.part.name, None))
        if not self._stopping and child.part is not MIGRATION:
            self._emit(SUPERVISOR, f"{child.part.name} {child.how_it_ended}")

    async def _pass_on(self, child: _Child, reading: int) -> None:
        translated = LINES.get(child.part.kind)
        async for line in lines_of(reading):
            child.tail.append(line)
            if translated is None:
                self._emit(child.part.name, line)
            elif not (said := translated(line)).chatter or self._verbose:
                self._emit(child.part.name, said.text)

    async def _until_healthy(self, child: _Child) -> None:
        part, deadline = child.part, time.monotonic() + _READY_SECONDS
        while self._starting:
            healthy = await is_healthy(part.kind, part.address, part.health_address)
            if child.ended.is_set():  # then it was something else that answered
                self._fail(child, child.how_it_ended)
            elif healthy:
                return
            elif time.monotonic() > deadline:
                self._fail(child, f"was not healthy after {_READY_SECONDS:.0f} s")
            else:
                await asyncio.sleep(_POLL_SECONDS)

    def _fail(self, child: _Child, what: str) -> None:
        # The first is the cause; others may have failed for want of it.
        self._failure = self._failure or PartFailed(child.part.name, what, child.tail)

    async def _stop(self) -> None:
        self._stopping = True
        self._note(replace(self._state, phase="stopping"))
        for kind in (MIGRATION.kind, *STOP_ORDER):
            living = [child for child in self._children if child.part.kind == kind and not child.ended.is_set()]
            await asyncio.gather(*(self._end(child) for child in living))

    async def _end(self, child: _Child) -> None:
        if not self._signals.kill.is_set():
            self._emit(SUPERVISOR, f"stopping {child.part.name}")
            with suppress(ProcessLookupError):
                child.process.terminate()
            await _first_of(child.ended.wait(), self._signals.kill.wait(), seconds=_STOP_SECONDS)
            if not child.ended.is_set() and not self._signals.kill.is_set():
                self._emit(SUPERVISOR, f"{child.part.name} did not stop within {_STOP_SECONDS:.0f} s and is killed")
        child.signal_group(signal.SIGKILL)
        await child.ended.wait()

    def _note(self, state: StackState) -> None:
        self._state = state
        try:
            write_state(self._options.data, state)
        except OSError as error:
            # The stack itself can go on, and must be able to stop.
            self._emit(SUPERVISOR, f"{error.filename}: {error.strerror}: status and down may not find this stack")


def command_of(part: Part, options: Options) -> Sequence[str | Path]:
    """The command line of a part; writes the configuration that it names."""
    match part.kind:
        case "nats":
            return NatsServer(options.data / "nats", part.port).command()
        case "redis":
            return RedisServer(options.data / "redis", part.port).command()
        case MIGRATION.kind:
            return (sys.executable, "-m", "promptlooper.cli.main", "migrate")
        case _:
            return (sys.executable, "-m", f"promptlooper.{part.kind}")


async def _first_of(*waits: Coroutine[Any, Any, object], seconds: float | None = None) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
