"""Simulated time and processes: asyncio code runs as it is, in one thread, the same way each time.

    loop = SimulatedLoop()
    server = Process(loop, "server")
    server.start(serve())
    loop.run(test())  # `server.stall()`, `server.go_on()` and `server.kill()` are what signals do to real processes

When nothing is ready, time jumps to the next timer, so that an hour of waiting takes no time. There are no files,
sockets and threads. What runs is repeatable where the code takes its time from `SimulatedClock`, its chance from a
seeded `random.Random` and its ids from a counter, and where no order comes from a set.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import base_events
from collections.abc import Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
_TURNS_WITHOUT_TIME = 100_000  # of the loop, before it is said to spin
_process: ContextVar[Process | None] = ContextVar("process", default=None)


class Stuck(Exception):
    """Nothing will ever happen again, or things happen without end while no time passes."""


class SimulatedLoop(base_events.BaseEventLoop):
    """An event loop whose time is simulated. What callbacks and tasks raise and nobody takes is in `faults`."""

    _ready: Any
    _scheduled: list[Any]

    def __init__(self) -> None:
        super().__init__()
        self._seconds = 0.0
        self._turns = 0
        self._processes: list[Process] = []
        self.faults: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, fault: self.faults.append(fault))
        self.set_task_factory(_task)

    def time(self) -> float:
        return self._seconds

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Runs `main` to its end, ends what is left then, and closes the loop. Raises Stuck."""
        try:
            return self.run_until_complete(main)
        finally:
            self._turns = 0
            self.run_until_complete(self._end())
            self.close()

    async def _end(self) -> None:
        for process in self._processes:
            await process.bury()
        left = [task for task in asyncio.all_tasks(self) if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=60)

    def _run_once(self) -> None:
        """One round, in place of BaseEventLoop's, which would wait."""
        ready, scheduled = self._ready, self._scheduled
        self._turns += 1
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                raise Stuck(f"nothing is left to happen after {self._seconds:.6f} s")
            if scheduled[0]._when > self._seconds:
                self._seconds, self._turns = scheduled[0]._when, 0
        if self._turns > _TURNS_WITHOUT_TIME:
            raise Stuck(f"the loop went round {self._turns} times and no time passed after {self._seconds:.6f} s")
        while scheduled and scheduled[0]._when <= self._seconds:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(_process)
            if process is None or process.state in _RUNS:
                handle._run()
            else:
                process._held.append(handle)

    def _write_to_self(self) -> None:
        """BaseEventLoop's way to wake a loop that waits; this one never does."""

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> NoReturn:  # type: ignore[override]
        raise RuntimeError(f"a simulation has no threads, and {func!r} asks for one")


class ProcessState(Enum):
    RUNNING = "running"
    STALLED = "stalled"
    KILLED = "killed"
    BURIED = "buried"  # killed, and what is left of it is being cleared away


_RUNS = frozenset({ProcessState.RUNNING, ProcessState.BURIED})


class Process:
    """Everything that was started in it, and what that starts in turn. Its memory is shared with the others: let them
    talk through what a real process has, and let that refuse those that are `killed`."""

    def __init__(self, loop: SimulatedLoop, name: str) -> None:
        self.name, self.state = name, ProcessState.RUNNING
        self._loop = loop
        loop._processes.append(self)
        self._context = copy_context()
        self._context.run(_process.set, self)
        self._tasks: list[asyncio.Task[Any]] = []
        self._held: list[Any] = []  # handles of what would run if this process did

    def __repr__(self) -> str:
        return f"<process {self.name} {self.state.value}>"

    @property
    def killed(self) -> bool:
        return self.state in (ProcessState.KILLED, ProcessState.BURIED)

    def context(self) -> Context:
        """For callbacks that are to run in this process: `loop.call_later(…, context=process.context())`."""
        return self._context.copy()

    def start(self, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task in this process. Awaited from elsewhere it never ends if the process is killed."""
        return self._loop.create_task(coro, context=self.context())

    def stall(self) -> None:
        """Like SIGSTOP: nothing in it runs, timers included."""
        if self.state is ProcessState.RUNNING:
            self.state = ProcessState.STALLED

    def go_on(self) -> None:
        """Like SIGCONT: what came meanwhile happens now, in its order."""
        if self.state is ProcessState.STALLED:
            self._wake(ProcessState.RUNNING)

    def kill(self) -> None:
        """Like SIGKILL: nothing in it runs any more, clean-up included."""
        self.state = ProcessState.KILLED

    async def bury(self) -> None:
        """Cancels the tasks of a killed process, so that Python can forget them without a word. For when all is over:
        their clean-up runs now, and finds the process `killed`."""
        self._wake(ProcessState.BURIED)
        for _ in range(100):
            left = [task for task in self._tasks if not task.done()]
            for task in left:
                task.cancel()
            if not left:
                break
            await asyncio.wait(left, timeout=1.0)
        else:
            raise Stuck(f"{left} can't be cancelled")
        for task in self._tasks:
            if not task.cancelled():
                task.exception()  # has been seen

    def _wake(self, state: ProcessState) -> None:
        self.state = state
        self._loop._ready.extend(self._held)
        self._held.clear()

    def _remember(self, task: asyncio.Task[Any]) -> None:
        if len(self._tasks) >= 64 and len(self._tasks) % 64 == 0:
            self._tasks = [known for known in self._tasks if not known.done()]
        self._tasks.append(task)


def _task(
    loop: asyncio.AbstractEventLoop,
    coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
    context: Context | None = None,
) -> asyncio.Task[T]:
    task: asyncio.Task[T] = asyncio.Task(coro, loop=loop, context=context)
    process = _process.get() if context is None else context.get(_process)
    if process is not None:
        process._remember(task)
    return task


class SimulatedClock:
    """The loop's time as a Clock. `skew` is by how many seconds this machine's wall clock is ahead."""

    def __init__(
        self, loop: SimulatedLoop, skew: float = 0.0, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    ) -> None:
        self._loop, self._start = loop, start + timedelta(seconds=skew)

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._loop.time())

    def monotonic(self) -> float:
        return self._loop.time()
