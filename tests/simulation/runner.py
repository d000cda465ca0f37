"""A Runner process: the real one, on a simulated database, model and cache."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from simulation.kept import scorers
from simulation.observer import Holder
from simulation.provider import SimulatedCache, SimulatedGateway
from simulation.schedule import LEASE_TTL
from simulation.store import SimulatedDatabase

from promptlooper.errors import StoreUnavailable
from promptlooper.runner.app import runner_core
from promptlooper.runner.core import RunnerCore
from promptlooper.runner.store.database import Database
from promptlooper.testing.simulation import Process, ProcessState, SimulatedClock

if TYPE_CHECKING:
    from simulation.world import World

RESTART_AFTER = 0.3  # seconds


class Runner:
    """A place for Runner processes, one after another."""

    def __init__(self, world: World, number: int) -> None:
        self._world, self._number = world, number
        self.process: Process | None = None
        self.core: RunnerCore | None = None
        self._lives = 0
        self._troubled_at = -1e9
        self._leave = asyncio.Event()
        self._wanted = True

    def start(self) -> None:
        if self.process is not None or not self._wanted:
            return
        world = self._world
        self._lives += 1
        self._leave = asyncio.Event()
        self.process = process = Process(world.loop, f"r{self._number}-{self._lives}")
        world.processes.append(process)
        process.start(self._serve(process, self._leave)).add_done_callback(lambda task: self._ended(process, task))

    async def _serve(self, process: Process, leave: asyncio.Event) -> None:
        world, schedule = self._world, self._world.schedule
        numbers = iter(range(1, 1_000_000))
        current = ""

        def registered(runner_id: str) -> None:
            nonlocal current
            current = runner_id
            world.observer.holders[runner_id] = Holder(
                process, lambda: current, lambda: self.process is process, lambda: self._troubled_at
            )

        async with runner_core(
            cast(Database, SimulatedDatabase(world.server, process, self._troubled)),
            SimulatedGateway(world.model, process),
            SimulatedCache(world.memory, process),
            scorers(),
            slots=schedule.slots[self._number],
            lease_ttl=LEASE_TTL,
            replica=f"r{self._number}" if schedule.replicas else "",
            registered=registered,
            clock=SimulatedClock(world.loop, schedule.skews[self._number]),
            new_id=lambda: f"{process.name}-{next(numbers)}",
        ) as core:
            self.core = core
            await leave.wait()
            self.core = None
            await core.drain(world.chance.uniform(0, 1))

    def _ended(self, process: Process, task: asyncio.Task[None]) -> None:
        """Left in good order, or could not begin as the database was away."""
        if task.cancelled() or process.killed:
            return
        error = task.exception()
        if error is not None and not isinstance(error, StoreUnavailable):
            self._world.observer.breaks(f"{process.name} ended with {error!r}")
        if self.process is process:
            self.process = self.core = None
            self._world.loop.call_later(RESTART_AFTER, self.start)

    def _troubled(self, seconds: float = 0.0) -> None:
        self._troubled_at = max(self._troubled_at, self._world.loop.time() + seconds)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process = self.core = None

    def stall(self) -> None:
        if self.process is not None:
            self.process.stall()

    def go_on(self) -> None:
        if self.process is not None and self.process.state is ProcessState.STALLED:
            self._troubled()
            self.process.go_on()

    def drain(self) -> None:
        self._leave.set()

    def close(self) -> None:
        """Leaves for good."""
        self._wanted = False
        self._leave.set()
