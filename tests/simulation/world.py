"""One simulation: Runners, clients and trouble on one database, from a seed to a report."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from simulation.checker import check_end
from simulation.kept import disk, one_renderer
from simulation.observer import Observer
from simulation.provider import Memory, Model
from simulation.runner import Runner
from simulation.schedule import (
    LEASE_TTL,
    TROUBLE_UNTIL,
    Command,
    Odds,
    PlannedExperiment,
    Schedule,
    Strike,
    schedule_of,
)
from simulation.store import DatabaseServer, Disk

from promptlooper.errors import DomainError, ServiceUnavailable, StoreUnavailable
from promptlooper.experiments import ExperimentUpdate
from promptlooper.runner.core import RunnerCore
from promptlooper.runner.store.rows import microseconds
from promptlooper.testing.simulation import Process, SimulatedClock, SimulatedLoop, Stuck

T = TypeVar("T")
RPC_TIMEOUT = 3.0  # seconds
TO_THE_END = 60.0  # seconds without trouble in which everything must end


@dataclass(frozen=True, slots=True)
class Report:
    seed: int
    broken: tuple[str, ...]  # promises; empty where all is well
    digest: str  # of the trace
    trace: tuple[str, ...]
    faults: Counter[str]
    calls: int
    seconds: float  # simulated

    def __str__(self) -> str:
        told = "\n  ".join(self.broken) or "all is well"
        return f"PROMPTLOOPER_SEED={self.seed} after {self.seconds:.1f} simulated s:\n  {told}"


class World:
    def __init__(self, schedule: Schedule, disk: Disk) -> None:
        self.schedule = schedule
        self.loop = loop = SimulatedLoop()
        self.chance = chance = Random(f"world {schedule.seed}")
        clock = SimulatedClock(loop)
        disk.wipe(lambda: microseconds(clock.now()))
        self.observer = observer = Observer(loop, schedule)
        self.server = DatabaseServer(loop, disk, chance, schedule.odds, observer.after_write)
        self.model = Model(loop, chance, schedule.odds, schedule.longest_call, observer.begins)
        self.memory = Memory(loop, chance, schedule.odds)
        self.processes: list[Process] = []
        self.runners = [Runner(self, number) for number in range(len(schedule.slots))]
        self.faults: Counter[str] = Counter()

    def run(self) -> Report:
        with _errors_of_runners() as errors:
            try:
                self.loop.run(self._run())
            except Stuck as stuck:
                self.observer.breaks(str(stuck))
        observer, server = self.observer, self.server
        broken = [*observer.broken, *(f"the store refused: {what}" for what in server.refused), *errors]
        broken += [f"nobody caught {fault.get('exception')!r}: {fault['message']}" for fault in self.loop.faults]
        faults = self.faults + server.faults + self.model.faults + self.memory.faults
        return Report(
            self.schedule.seed,
            tuple(broken),
            observer.digest(),
            tuple(observer.trace),
            faults,
            len(self.model.calls),
            self.loop.time(),
        )

    async def _run(self) -> None:
        for runner in self.runners:
            runner.start()
        clients = [asyncio.create_task(self._client(planned)) for planned in self.schedule.experiments]
        strikes = [asyncio.create_task(self._strike(strike)) for strike in self.schedule.strikes]
        await self._until(
            lambda: (
                self._is_over(clients)
                or (self.loop.time() >= TROUBLE_UNTIL and all(strike.done() for strike in strikes))
            ),
            TO_THE_END,
        )
        for strike in strikes:
            strike.cancel()
        self._heal()
        if not await self._until(lambda: self._is_over(clients), TO_THE_END):
            states = [row.state for row in self.observer.progress.values()]
            self.observer.breaks(f"not everything ended within {TO_THE_END:g} s without trouble: {states}")
            for client in clients:
                client.cancel()
        await asyncio.sleep(self.chance.uniform(0, LEASE_TTL / 2))
        await self._close()
        for client in clients:
            if client.done() and not client.cancelled() and (error := client.exception()) is not None:
                self.observer.breaks(f"a client was told {error!r}")
        self.observer.check_calls(self.model.calls)
        check_end(self.observer, self.server, self.schedule)
        sealed, self.observer.after_write = list(self.observer.trace), lambda *_: None  # type: ignore[method-assign]
        for process in self.processes:
            if process.killed:
                await process.bury()
        self.observer.trace[:] = sealed

    def _is_over(self, clients: list[asyncio.Task[None]]) -> bool:
        return all(client.done() for client in clients) and self._all_ended()

    def _all_ended(self) -> bool:
        progress = self.observer.progress.values()
        return len(progress) == len(self.schedule.experiments) and all(row.ended for row in progress)

    async def _until(self, condition: Callable[[], bool], within: float) -> bool:
        until = self.loop.time() + within
        while not condition():
            if self.loop.time() >= until:
                return False
            await asyncio.sleep(0.05)
        return True

    def _heal(self) -> None:
        self.server.heal()
        self.model.odds = self.memory.odds = Odds()
        for runner in self.runners:
            runner.go_on()
            runner.start()

    async def _close(self) -> None:
        for runner in self.runners:
            runner.close()
        if not await self._until(lambda: all(runner.process is None for runner in self.runners), 30):
            self.observer.breaks("a Runner does not end within 30 s")
            for runner in self.runners:
                runner.kill()

    async def _strike(self, strike: Strike) -> None:
        await asyncio.sleep(strike.at)
        self.faults[strike.kind] += 1
        runner = self.runners[strike.runner or 0]
        match strike.kind:
            case "kill":
                runner.kill()
                await asyncio.sleep(strike.seconds)
                runner.start()
            case "stall":
                runner.stall()
                await asyncio.sleep(strike.seconds)
                runner.go_on()
            case "drain":
                runner.drain()
            case "outage":
                self.observer.longest_outage = max(self.observer.longest_outage, strike.seconds)
                self.server.out_until = max(self.server.out_until, self.loop.time() + strike.seconds)
                await asyncio.sleep(strike.seconds)
            case "freeze":
                self.observer.longest_outage = max(self.observer.longest_outage, strike.seconds)
                self.server.frozen_until = max(self.server.frozen_until, self.loop.time() + strike.seconds)
                await asyncio.sleep(strike.seconds)

    async def _client(self, planned: PlannedExperiment) -> None:
        """Creates an experiment and asks what is planned of it, each again until there is an answer."""
        await asyncio.sleep(planned.at)
        name = planned.spec.name
        created = await self._ask(lambda core: core.create(planned.spec, f"create-{name}"))
        experiment_id = created.experiment_id
        for number, command in enumerate(planned.commands):
            await self._time_of(planned, command, experiment_id)
            await self._command(experiment_id, command, f"{name}-{number}")

    async def _time_of(self, planned: PlannedExperiment, command: Command, experiment_id: str) -> None:
        """When a command is asked: as planned, or soon after the experiment's end. Nothing happens in between."""
        at = planned.at + command.at
        await self._until(lambda: self.observer.progress[experiment_id].ended, at - self.loop.time())
        await asyncio.sleep(max(0.0, min(self.chance.uniform(0, 0.4), at - self.loop.time())))

    async def _command(self, experiment_id: str, command: Command, request_id: str) -> None:
        def ask(core: RunnerCore) -> Awaitable[Any]:
            match command.verb:
                case "cancel":
                    return core.cancel(experiment_id)
                case "pause":
                    return core.pause(experiment_id)
                case "resume":
                    return core.resume(experiment_id, request_id)
                case "retry":
                    return core.retry(experiment_id, request_id)
                case "update":
                    return core.update(experiment_id, ExperimentUpdate(max_concurrency=command.number))
                case _:
                    return core.cancel_run(f"{experiment_id}-{command.number}")

        while True:
            try:
                await self._ask(ask)
                return
            except DomainError as error:
                if error.reason in ("RUN_NOT_FOUND", "EXPERIMENT_CANCELLED"):
                    return
                if error.reason != "EXPERIMENT_NOT_ENDED":
                    raise
                await asyncio.sleep(self.chance.choice((0.01, 0.2)))  # it is being cancelled
            row = self.observer.progress[experiment_id]
            if command.verb == "pause" and row.ended:
                return

    async def _ask(self, what: Callable[[RunnerCore], Awaitable[T]]) -> T:
        """Asks some Runner, and another one where that does not answer."""
        while True:
            serving = [runner for runner in self.runners if runner.core is not None and runner.process is not None]
            if serving:
                runner = self.chance.choice(serving)
                assert runner.process is not None
                assert runner.core is not None
                task = runner.process.start(_asked(what, runner.core))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
                done, _ = await asyncio.wait({task}, timeout=RPC_TIMEOUT)
                if done:
                    try:
                        return task.result()
                    except (StoreUnavailable, ServiceUnavailable):
                        pass
            await asyncio.sleep(0.1)


async def _asked(what: Callable[[RunnerCore], Awaitable[T]], core: RunnerCore) -> T:
    return await what(core)


class _Errors(logging.Handler):
    """Keeps what Runners log with a traceback: nothing that a simulation does may surprise them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.told.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


@contextmanager
def _errors_of_runners() -> Iterator[list[str]]:
    log, handler = logging.getLogger("runner"), _Errors()
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.ERROR)
    log.propagate = False
    try:
        yield handler.told
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


def simulated(seed: int, schedule: Schedule | None = None) -> Report:
    """The report of one simulation. Python's garbage is collected between simulations, not in them: when that happens
    is not repeatable."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        with one_renderer():
            return World(schedule or schedule_of(seed), disk()).run()
    finally:
        if enabled:
            gc.enable()
