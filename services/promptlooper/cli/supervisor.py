"""Runs the parts of a stack: starts them, waits until they are healthy, starts again what dies, and stops them in
order."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from promptlooper.cli.probe import is_healthy
from promptlooper.cli.stack import MIGRATION, SERVICES, STOP_ORDER, Options, Part, environment_of
from promptlooper.cli.stack_child import Child, delay_after, start_child
from promptlooper.cli.stack_log import LINES, SUPERVISOR, Emit, lines_of
from promptlooper.cli.stack_state import StackState, ownership, planned_state, process_of, remove_state, write_state
from promptlooper.errors import DomainError

_BACKING = tuple(kind for kind in STOP_ORDER if kind not in SERVICES)
_WAVES = (_BACKING, SERVICES)
_READY_SECONDS = 60.0
_POLL_SECONDS = 0.05
# Nobody waits for a part that was started again, and it may take as long as a database is away.
_POLL_AGAIN_SECONDS = 0.25
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
        self._living: list[Child] = []
        self._failure: PartFailed | None = None
        self._stopping = asyncio.Event()
        self._starting_again = asyncio.Lock()

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

    async def _spawn(self, part: Part, watches: asyncio.TaskGroup, delay: float | None = None) -> Child:
        env = environment_of(part, self._parts, self._options)
        child, reading = await start_child(part, self._options, env, delay)
        self._living.append(child)
        self._note(self._state.with_process(part.name, process_of(child.process.pid)))
        watches.create_task(self._watch(child, reading, watches))
        return child

    async def _watch(self, child: Child, reading: int, watches: asyncio.TaskGroup) -> None:
        """Passes on what a part says, notes its end, and has it started again."""
        saying = asyncio.create_task(self._pass_on(child, reading))
        await child.process.wait()
        child.signal_group(signal.SIGKILL)  # what it started and left behind
        await asyncio.wait({saying}, timeout=_LAST_WORDS_SECONDS)
        saying.cancel()
        child.ended.set()
        self._living.remove(child)
        self._note(self._state.with_process(child.part.name, None))
        if self._stopping.is_set() or child.part is MIGRATION:
            return
        if child.healthy_since is None and child.delay is None:  # never was: the stack fails to start
            self._emit(SUPERVISOR, f"{child.part.name} {child.how_it_ended}")
        else:
            await self._start_again(child, watches)

    async def _pass_on(self, child: Child, reading: int) -> None:
        translated = LINES.get(child.part.kind)
        async for line in lines_of(reading):
            child.tail.append(line)
            if translated is None:
                self._emit(child.part.name, line)
            elif not (said := translated(line)).chatter or self._verbose:
                self._emit(child.part.name, said.text)

    async def _until_healthy(self, child: Child) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while self._starting:
            healthy = await self._is_healthy(child)
            if child.ended.is_set():
                self._fail(child, child.how_it_ended)
            elif healthy:
                return
            elif time.monotonic() > deadline:
                self._fail(child, f"was not healthy after {_READY_SECONDS:.0f} s")
            else:
                await asyncio.sleep(_POLL_SECONDS)

    async def _is_healthy(self, child: Child) -> bool:
        healthy = await is_healthy(child.part.kind, child.part.address, child.part.health_address)
        if not healthy or child.ended.is_set():  # once it has ended it was something else that answered
            return False
        child.healthy_since = time.monotonic()
        return True

    def _fail(self, child: Child, what: str) -> None:
        # The first is the cause; others may have failed for want of it.
        self._failure = self._failure or PartFailed(child.part.name, what, child.tail)

    async def _start_again(self, ended: Child, watches: asyncio.TaskGroup) -> None:
        """Tries until it is started, and waits longer each time; whether it is healthy then is said, too."""
        part, what, delay = ended.part, ended.how_it_ended, ended.next_delay()
        while True:
            self._emit(SUPERVISOR, f"{part.name} {what}; it is started again in {delay:g} s")
            await _first_of(self._stopping.wait(), seconds=delay)
            async with self._starting_again:
                if self._stopping.is_set():
                    return
                try:
                    child = await self._spawn(part, watches, delay)
                except OSError as error:
                    what = f"can't be started: {error.filename or part.name}: {error.strerror}"
                except DomainError as error:
                    what = f"can't be started: {error.message}"
                else:
                    break
            delay = delay_after(delay)
        await self._until_healthy_again(child)

    async def _until_healthy_again(self, child: Child) -> None:
        name, late = child.part.name, time.monotonic() + _READY_SECONDS
        while not (self._stopping.is_set() or child.ended.is_set()):
            if await self._is_healthy(child):
                self._emit(SUPERVISOR, f"{name} is healthy again, as process {child.process.pid}")
                return
            if time.monotonic() > late:
                self._emit(SUPERVISOR, f"{name} was started again {_READY_SECONDS:.0f} s ago and is not healthy yet")
                late = math.inf
            await _first_of(child.ended.wait(), self._stopping.wait(), seconds=_POLL_AGAIN_SECONDS)

    async def _stop(self) -> None:
        self._stopping.set()
        async with self._starting_again:  # what is just being started is stopped as well; nothing is from here on
            self._note(replace(self._state, phase="stopping"))
        for kind in (MIGRATION.kind, *STOP_ORDER):
            await asyncio.gather(*(self._end(child) for child in self._living if child.part.kind == kind))

    async def _end(self, child: Child) -> None:
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


async def _first_of(*waits: Coroutine[Any, Any, object], seconds: float | None = None) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
