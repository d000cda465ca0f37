"""The engine of a Runner: which experiments it works on, how many runs of each, and the lease under which it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

from promptlooper.batches import BatchGateway
from promptlooper.clock import Clock, IdMaker
from promptlooper.completion import CompletionGateway
from promptlooper.errors import ExperimentNotFound, StoreUnavailable
from promptlooper.experiment import ExperimentState
from promptlooper.failpoints import Failpoints
from promptlooper.runner.answers import Answers
from promptlooper.runner.batches import USUAL_PACE, BatchKeeper, BatchPace
from promptlooper.runner.counts import RunnerCounts
from promptlooper.runner.events.hub import Hub
from promptlooper.runner.fairness import fair_shares
from promptlooper.runner.loop import ExperimentLoop
from promptlooper.runner.render import Renderer
from promptlooper.runner.scores import Scores
from promptlooper.runner.store import control, leases, repository, requests, uploads
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.rows import microseconds

log = logging.getLogger("runner.engine")
POLL = 0.2  # seconds between looks at what is active, without a hint
CANCEL_POLL = 0.4  # seconds between looks for single runs that are to be stopped
LEASE_TTL = 15.0  # seconds
FORGET_EVERY = 60.0  # seconds between looks for requests that are too old
AFTER_OUTAGE = 0.5  # seconds before the database is tried again
AFTER_FAULT = 2.0


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What the engine and its loops work with."""

    database: Database
    gateway: CompletionGateway
    batches: BatchGateway
    answers: Answers
    scores: Scores
    renderer: Renderer
    hub: Hub
    clock: Clock
    failpoints: Failpoints
    counts: RunnerCounts


class Engine:
    """Runs experiments until it is stopped. `slots` bounds the runs, and so the memory, of this process. With
    `own_only` it works on what was created here and leaves the rest to other processes. `registered` hears each
    runner_id first."""

    def __init__(
        self,
        parts: EngineParts,
        new_id: IdMaker,
        slots: int,
        *,
        own_only: bool = False,
        lease_ttl: float = LEASE_TTL,
        replica: str = "",
        registered: Callable[[str], None] = lambda runner_id: None,
        batch_pace: BatchPace = USUAL_PACE,
    ) -> None:
        self._parts, self._new_id, self.slots, self.own_only = parts, new_id, slots, own_only
        self._lease_ttl, self._replica, self._registered = lease_ttl, replica, registered
        self._own: set[str] = set()
        self._keeper = BatchKeeper(
            parts.database,
            parts.batches,
            parts.clock,
            new_id,
            parts.failpoints,
            runner_id=lambda: self.runner_id,
            mine=lambda experiment_id: not own_only or experiment_id in self._own,
            may_call=lambda: self.may_call,
            changed=self._batch_answered,
            pace=batch_pace,
        )
        self.runner_id = ""
        self._loops: dict[str, ExperimentLoop] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._hint = asyncio.Event()
        self._draining = False
        self._lease_since = 0.0  # monotonic time since when every renewal has succeeded
        self._renewed = 0.0  # monotonic time of the last renewal
        self._outage = False  # the last renewal failed
        self._reaping: asyncio.Task[None] | None = None
        self._looked_for_cancels = self._forgot = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        """The engine at work. On leaving, running calls are stopped, and their runs handed back to be claimed again."""
        await self._register()
        works = (self._dispatch(), self._keep_lease(), self._keeper.run())
        background = [asyncio.create_task(work, context=Context()) for work in works]
        if self._replica:
            self._begin_reaping(self._take_from_the_dead())
        try:
            yield self
        finally:
            if self._reaping is not None:
                background.append(self._reaping)
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self._stop_loops(hand_back=True)
            await self._keeper.finish()
            try:
                await self._parts.database.write(lambda c: leases.end_runner(c, self.runner_id))
            except StoreUnavailable as error:
                log.warning("can't say that runner %s ended, its lease must run out: %s", self.runner_id, error)

    def take_up(self, experiment_id: str) -> None:
        """An experiment was created or resumed here: look at it now."""
        if self.own_only:
            self._own.add(experiment_id)
        self._hint.set()

    async def drain(self, seconds: float) -> None:
        """Starts nothing more, and lets calls under way end for up to `seconds`: then their runs are stored or handed
        back. Returns sooner where they have ended."""
        self._draining = True
        for loop in self._loops.values():
            loop.drain()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=seconds)
        if left := self.in_flight():
            log.warning("%d runs did not get to the end of their stage in time; they are handed back", left)
        await self._stop_loops(hand_back=True)

    def hint(self) -> None:
        """There may be something new to do: look now."""
        self._hint.set()

    @property
    def may_call(self) -> bool:
        """Whether the lease was renewed within its term: a Runner that was frozen must not begin what it has claimed,
        others may have it."""
        return self._parts.clock.monotonic() - self._renewed < self._lease_ttl

    def in_flight(self) -> int:
        return sum(loop.in_flight for loop in self._loops.values())

    def asking(self) -> int:
        """Slots that turns under way may take."""
        return sum(loop.asking for loop in self._loops.values())

    def cancel_run(self, experiment_id: str, run_index: int) -> None:
        if (loop := self._loops.get(experiment_id)) is not None:
            loop.cancel_run(run_index)

    def _batch_answered(self, experiment_id: str) -> None:
        if (loop := self._loops.get(experiment_id)) is not None:
            loop.wake()
        self._parts.hub.changed(experiment_id)

    async def _register(self) -> None:
        self.runner_id = self._new_id()
        self._registered(self.runner_id)
        register = partial(leases.register_runner, runner_id=self.runner_id, ttl=self._lease_ttl, name=self._replica)
        asked = self._parts.clock.monotonic()  # the term counts from before the database was asked
        await self._parts.database.write(register)
        self._lease_since = self._renewed = asked

    async def _dispatch(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL):  # wait_for may swallow a cancellation
                    await self._hint.wait()
            self._hint.clear()
            try:
                await self._look()
                await self._stop_cancelled_runs()
            except StoreUnavailable as error:
                log.warning("can't look for work: %s", error)
                await asyncio.sleep(AFTER_OUTAGE)
            except Exception:  # one fault must not end the work on every experiment
                log.exception("can't look for work")
                await asyncio.sleep(AFTER_FAULT)

    async def _look(self) -> None:
        """Starts loops for what is active, and tells each its share."""
        active, living = await self._parts.database.read(repository.active, urgent=True)
        counts = self._parts.counts
        counts.queue.look(active, living, self._parts.clock.monotonic())
        counts.in_flight, counts.cache_failures = self.in_flight(), self._parts.answers.cache_failures
        mine = [a for a in active if not self.own_only or a.experiment_id in self._own]
        self._forget_ended()
        if self._draining:
            for experiment in mine:
                if experiment.state is ExperimentState.CANCELLING and experiment.experiment_id in self._loops:
                    self._loops[experiment.experiment_id].cancel()
            return
        now_us = microseconds(self._parts.clock.now())
        for experiment in mine:
            if experiment.experiment_id not in self._tasks and experiment.has_work:
                self._start(experiment.experiment_id)
        for experiment_id in sorted(self._loops.keys() - {a.experiment_id for a in mine}):
            self._loops[experiment_id].check()
        here = [(a, self._loops[a.experiment_id]) for a in mine if a.experiment_id in self._loops]
        wants = {a.experiment_id: loop.wanted(a, 1 if self.own_only else living) for a, loop in here}
        shares = fair_shares(self.slots, wants)
        for experiment, loop in here:
            if experiment.state is ExperimentState.CANCELLING:
                loop.cancel()
            else:
                loop.uncancel()
            loop.look(shares[experiment.experiment_id], experiment.room)
        for experiment in mine:
            if experiment.is_overdue(now_us):
                await self._time_is_over(experiment.experiment_id, now_us)

    async def _time_is_over(self, experiment_id: str, now_us: int) -> None:
        log.info("experiment %s is cancelled: limits.experiment_timeout is over", experiment_id)
        stop = partial(control.cancel, experiment_id=experiment_id, now_us=now_us, reason="TIMEOUT")
        with suppress(ExperimentNotFound):
            await self._parts.database.write(stop)
        self._parts.hub.changed(experiment_id)

    async def _stop_cancelled_runs(self) -> None:
        """Runs that a client of any Runner wants stopped."""
        now = self._parts.clock.monotonic()
        if now - self._looked_for_cancels < CANCEL_POLL or not self.in_flight():
            return
        self._looked_for_cancels = now
        wanted = partial(control.requested_cancels, runner_id=self.runner_id)
        for experiment_id, run_index in await self._parts.database.read(wanted, urgent=True):
            self.cancel_run(experiment_id, run_index)

    def _start(self, experiment_id: str) -> None:
        loop = ExperimentLoop(experiment_id, self._parts, self)
        self._loops[experiment_id] = loop
        self._tasks[experiment_id] = asyncio.create_task(loop.run(), name=f"experiment {experiment_id}")

    def _forget_ended(self) -> None:
        for experiment_id in [e for e, task in self._tasks.items() if task.done()]:
            task = self._tasks.pop(experiment_id)
            del self._loops[experiment_id]
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("experiment %s: its loop ended with %r", experiment_id, error)

    async def _stop_loops(self, *, hand_back: bool) -> None:
        for loop in self._loops.values():
            loop.stop(hand_back=hand_back)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._forget_ended()

    async def _keep_lease(self) -> None:
        """Renews this Runner's lease, and gives back the runs of Runners whose lease ran out, but only with one
        unbroken TTL of own renewals behind it: after an outage of the database nobody robs anybody."""
        database, clock = self._parts.database, self._parts.clock
        while True:
            await asyncio.sleep(self._lease_ttl / 3)
            try:
                self._parts.failpoints.hit("lease_before_renew")
                renew = partial(leases.renew_runner, runner_id=self.runner_id, ttl=self._lease_ttl)
                asked = clock.monotonic()
                alive = await database.lease(renew, within=self._lease_ttl / 3)
                late = clock.monotonic() - self._renewed >= self._lease_ttl
                if alive:
                    self._renewed = asked
                if late or self._outage:  # this Runner or the database was frozen or away: others may have been too
                    self._lease_since, self._outage = clock.monotonic(), False
                if not alive:
                    self._parts.counts.leases_lost += 1
                    log.error("runner %s lost its lease: its calls are stopped, it takes a new id", self.runner_id)
                    await self._stop_loops(hand_back=False)
                    await self._register()
                elif clock.monotonic() - self._lease_since >= self._lease_ttl:
                    self._begin_reaping(self._reap())
                if clock.monotonic() - self._forgot >= FORGET_EVERY:
                    self._forgot = clock.monotonic()
                    await database.write(partial(_forget_old, now_us=microseconds(clock.now())))
            except StoreUnavailable as error:
                self._outage = True
                log.warning("can't renew the lease: %s", error)
            except Exception:  # without renewals others would take our runs
                log.exception("can't renew the lease")

    def _begin_reaping(self, reap: Coroutine[Any, Any, None]) -> None:
        """One at a time, and beside the renewals: a dead Runner may have left many experiments."""
        if self._reaping is not None and not self._reaping.done():
            reap.close()
            return
        self._reaping = asyncio.create_task(self._reaped(reap), name="reaping")

    @staticmethod
    async def _reaped(reap: Coroutine[Any, Any, None]) -> None:
        try:
            await reap
        except StoreUnavailable as error:
            log.warning("can't take runs back from dead runners yet: %s", error)
        except Exception:
            log.exception("can't take runs back from dead runners")

    async def _reap(self) -> None:
        mark = partial(leases.mark_expired_runners, runner_id=self.runner_id, ttl=self._lease_ttl)
        await self._parts.database.write(mark)
        await self._take_from_the_dead()

    async def _take_from_the_dead(self) -> None:
        database = self._parts.database
        for experiment_id in await database.read(leases.orphaned, urgent=True):
            now_us = microseconds(self._parts.clock.now())
            take = partial(leases.give_back_orphans, experiment_id=experiment_id, now_us=now_us)
            try:
                count = await database.write(take)
            except ExperimentNotFound:  # deleted in between
                continue
            if count:  # another Runner may have been first
                self._parts.counts.taken_back += count
                log.warning("took %d runs of experiment %s back from dead runners", count, experiment_id)
                self.hint()
        await database.write(leases.forget_dead_runners)


def _forget_old(connection: sa.Connection, now_us: int) -> None:
    requests.forget_old(connection, now_us)
    uploads.forget_old(connection, now_us)
