"""Keeps the batches of experiments: gathers questions that wait, hands them in, looks after them, and takes answers
home.

The database knows all that a successor needs. A batch's row is there before the batch is, so that one whose keeper died
on the way is looked for before it is handed in again; its results may be read again until all are stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import sqlalchemy as sa

from promptlooper.batches import BatchGateway, BatchItem, BatchResult, BatchState
from promptlooper.clock import Clock, IdMaker
from promptlooper.errors import BatchCancelled, DomainError, ExperimentNotFound, ProviderRejected, StoreUnavailable
from promptlooper.experiment import ExperimentState
from promptlooper.failpoints import Failpoints
from promptlooper.runner.batch_room import BatchRoom
from promptlooper.runner.batch_texts import answer_text, error_text, request_of
from promptlooper.runner.store import batches as store
from promptlooper.runner.store import repository
from promptlooper.runner.store.batches import EXPERIMENT, SUBMITTING, TIME, Open, Sizes, Standing
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.questions import ANSWERED, DIRECT, FAILED
from promptlooper.runner.store.rows import microseconds

T = TypeVar("T")
log = logging.getLogger("runner.batches")
MOST = Sizes(items=10_000, bytes=16 * 1024 * 1024)  # what every provider takes at once
FIRST_LOOK = 1.0  # seconds from a batch to the first look at it
TICK = 1.0  # seconds between looks at the database
GRACE = 3600.0  # seconds after its time that a batch may take to be cancelled
LEAVING = 5.0  # seconds for what is under way when the Runner leaves
RESULTS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class BatchPace:
    """Seconds: between looks at a batch, at most, and without a new question until those that wait are handed in."""

    poll: float = 60.0
    quiet: float = 5.0


USUAL_PACE = BatchPace()


class BatchKeeper:
    """One per Runner. Of an experiment one Runner keeps the batches; where it dies another does. `mine` says whether
    this Runner works on an experiment, `may_call` whether its lease holds, `changed` hears where runs go on."""

    def __init__(
        self,
        database: Database,
        gateway: BatchGateway,
        clock: Clock,
        new_id: IdMaker,
        failpoints: Failpoints,
        *,
        runner_id: Callable[[], str],
        mine: Callable[[str], bool],
        may_call: Callable[[], bool],
        changed: Callable[[str], None],
        pace: BatchPace = USUAL_PACE,
        sizes: Sizes = MOST,
    ) -> None:
        self._database, self._gateway, self._clock, self._new_id = database, gateway, clock, new_id
        self._failpoints, self._runner_id, self._mine = failpoints, runner_id, mine
        self._may_call, self._changed, self._pace = may_call, changed, pace
        self._room = BatchRoom(sizes, pace.poll, clock)
        self._passes: dict[str, asyncio.Task[None]] = {}
        self._due: dict[str, float] = {}  # batch_id → monotonic time of the next look
        self._untried: set[str] = set()  # batches that were formed here and not handed in yet

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self._look()
            except StoreUnavailable as error:
                log.warning("can't look for batches: %s", error)
            except Exception:  # one fault must not end the work on every batch
                log.exception("can't look for batches")
            await asyncio.sleep(min(TICK, self._pace.poll))

    async def finish(self) -> None:
        """After `run` was cancelled: lets what is under way end, and cancels the batches of experiments that have."""
        try:
            async with asyncio.timeout(LEAVING):
                if self._passes:
                    await asyncio.wait(self._passes.values())
                for experiment_id in await self._database.read(store.with_batches):
                    await self._pass(experiment_id, only_stop=True)
        except (TimeoutError, StoreUnavailable) as error:
            log.warning("batches are left to whoever comes next: %s", error or "there is no more time")
        for task in self._passes.values():
            task.cancel()
        await asyncio.gather(*self._passes.values(), return_exceptions=True)

    async def _look(self) -> None:
        self._passes = {key: task for key, task in self._passes.items() if not task.done()}
        experiments = await self._database.read(store.with_batches, urgent=True)
        self._room.forget_all_but(experiments)
        for experiment_id in experiments:
            if experiment_id not in self._passes:
                one = self._pass(experiment_id)
                self._passes[experiment_id] = asyncio.create_task(one, context=Context())

    async def _pass(self, experiment_id: str, *, only_stop: bool = False) -> None:
        """All that is to be done now for the batches of one experiment."""
        try:
            standing = await self._database.read(self._standing(experiment_id), urgent=True)
            if standing.state is not None and not await self._keeps(experiment_id, standing, only_stop):
                return
            if standing.state is None or standing.state.ended:
                for batch in standing.open:
                    if not batch.stop_reason:
                        await self._guarded(batch, self._stop(batch, EXPERIMENT))
            if only_stop:
                return
            if standing.overdue:
                late = partial(store.wake_overdue, experiment_id=experiment_id, now_us=self._now_us())
                await self._database.write(late)
                self._changed(experiment_id)
            sizes = self._room.sizes(experiment_id, len(standing.open))
            if sizes is not None and self._is_full(standing, sizes):
                await self._form(experiment_id, sizes)
            for batch in (await self._database.read(self._standing(experiment_id))).open:
                if batch.state == SUBMITTING and standing.state is ExperimentState.PAUSED:
                    continue  # nothing is handed in until it goes on
                if self._clock.monotonic() >= self._due.get(batch.batch_id, 0.0) and self._may_call():
                    await self._guarded(batch, self._attend(batch))
        except (ExperimentNotFound, StoreUnavailable) as error:
            log.warning("experiment %s: its batches wait: %s", experiment_id, error)
        except Exception:
            log.exception("experiment %s: its batches can't be kept", experiment_id)

    def _standing(self, experiment_id: str) -> Callable[[sa.Connection], Standing]:
        return partial(store.standing, experiment_id=experiment_id, now_us=self._now_us())

    async def _keeps(self, experiment_id: str, standing: Standing, only_stop: bool) -> bool:
        assert standing.state is not None
        ended, runner_id = standing.state.ended, self._runner_id()
        if standing.keeper not in ("", runner_id) or not self._may_call():
            return False
        if not (ended or self._mine(experiment_id)) or (only_stop and not ended):
            return False
        if standing.keeper == runner_id:
            return True
        return await self._database.write(partial(store.take, experiment_id=experiment_id, runner_id=runner_id))

    def _is_full(self, standing: Standing, sizes: Sizes) -> bool:
        """Whether what waits is handed in: nothing more is about to come, or not soon, or it is enough for a batch."""
        if not standing.waiting or standing.state not in (ExperimentState.PENDING, ExperimentState.RUNNING):
            return False
        enough = standing.waiting >= sizes.items or standing.size_waiting >= sizes.bytes
        return enough or not standing.coming or self._now_us() - standing.newest_us >= self._pace.quiet * 1e6

    async def _form(self, experiment_id: str, sizes: Sizes) -> None:
        spec, _ = await self._database.read(partial(repository.spec_of, experiment_id=experiment_id))
        form = partial(
            store.form,
            experiment_id=experiment_id,
            runner_id=self._runner_id(),
            new_id=self._new_id,
            sizes=sizes,
            now_us=self._now_us(),
            over_us=int(spec.execution.timeout * 1e6),
        )
        self._untried.update(await self._database.write(form))
        self._failpoints.hit("batch_formed")

    async def _guarded(self, batch: Open, work: Awaitable[None]) -> None:
        """What goes wrong with a batch is said, and tried again later; not for ever, and not where the batch is to stop
        and nobody can be asked any more."""
        try:
            await work
        except StoreUnavailable:
            raise
        except Exception as error:  # one batch must not keep the others from being looked after
            unexpected = None if isinstance(error, DomainError) else error
            log.warning("experiment %s: batch %s: %s", batch.experiment_id, batch.batch_id, error, exc_info=unexpected)
            is_lost = bool(batch.stop_reason) and isinstance(error, DomainError) and not error.retryable
            self._look_later(batch)
            if is_lost or self._is_hopeless(batch):
                await self._end(batch)

    def _is_hopeless(self, batch: Open) -> bool:
        """Whether the provider had its time, and more to stop the batch in."""
        return self._now_us() > batch.deadline_us + int(GRACE * 1e6)

    async def _attend(self, batch: Open) -> None:
        if batch.state == SUBMITTING:
            await self._submit(batch)
            return
        status = await self._gateway.batch_status(batch.handle)
        if status.message:
            log.warning("experiment %s: batch %s: %s", batch.experiment_id, batch.batch_id, status.message)
        if status.state is BatchState.ENDED and status.too_much:
            await self._wait_again(batch)
        elif status.state is BatchState.ENDED:
            await self._take_home(batch)
        elif status.state is BatchState.UNKNOWN or self._is_hopeless(batch):
            log.warning("batch %s is given up: its provider says that it is %s", batch.batch_id, status.state.value)
            await self._end(batch)
        else:
            if status.state is BatchState.RUNNING and (batch.stop_reason or self._is_over(batch)):
                await self._stop(batch, TIME)
            self._look_later(batch)

    def _is_over(self, batch: Open) -> bool:
        return self._now_us() > batch.deadline_us

    def _look_later(self, batch: Open) -> None:
        age = (self._now_us() - batch.created_us) / 1e6
        self._due[batch.batch_id] = self._clock.monotonic() + min(self._pace.poll, max(FIRST_LOOK, age / 10))

    async def _submit(self, batch: Open) -> None:
        again = batch.batch_id not in self._untried
        wanted = not (batch.stop_reason or self._is_over(batch))  # else it is only looked for
        of_it = partial(store.requests_of, batch_id=batch.batch_id)
        requests = await self._database.read(of_it) if wanted else {}
        if not (requests or again):
            await self._end(batch)
            return
        items = [BatchItem(key, request_of(r)) for key, r in requests.items()]
        self._untried.discard(batch.batch_id)
        self._failpoints.hit("batch_before_submit")
        try:
            taken = await self._gateway.submit_batch(batch.model, batch.batch_id, items, again=again)
        except DomainError as error:
            if error.retryable and not self._is_over(batch):
                raise
            log.warning("batch %s was not taken, its questions are asked directly: %s", batch.batch_id, error)
            await self._end(batch)
            return
        self._failpoints.hit("batch_after_submit")
        refused = [result.item_id for result in taken.refused]
        if taken.batch:
            log.info("experiment %s: batch %s of %d questions", batch.experiment_id, batch.batch_id, len(items))
            await self._database.write(partial(store.submitted, batch=batch, handle=taken.batch, refused=refused))
        else:
            await self._end(batch)
        self._changed(batch.experiment_id)

    async def _stop(self, batch: Open, reason: str) -> None:
        """Has the provider stop a batch. One that may be there or not is looked for first."""
        await self._database.write(partial(store.stopping, batch=batch, reason=reason))
        if batch.state == SUBMITTING and batch.batch_id in self._untried:
            await self._end(replace(batch, stop_reason=reason))
        elif batch.state != SUBMITTING:
            await self._gateway.cancel_batch(batch.handle)
            self._due.pop(batch.batch_id, None)

    async def _take_home(self, batch: Open) -> None:
        self._failpoints.hit("batch_before_results")
        results: list[BatchResult] = []
        answered = 0
        try:
            async for result in self._gateway.batch_results(batch.handle):
                results.append(result)
                answered += result.completion is not None
                if len(results) >= RESULTS_AT_ONCE:
                    await self._store(batch, results)
                    results = []
        except ProviderRejected as error:  # it would not say more another time
            log.warning("experiment %s: results of batch %s: %s", batch.experiment_id, batch.batch_id, error)
        await self._store(batch, results)
        self._failpoints.hit("batch_after_results")
        log.info("experiment %s: batch %s ended with %d answers", batch.experiment_id, batch.batch_id, answered)
        self._room.went_well(batch.experiment_id)
        await self._end(batch)

    async def _wait_again(self, batch: Open) -> None:
        """The provider has too much in batches: the questions wait for another, for as long as one batch may take."""
        alone = len((await self._database.read(self._standing(batch.experiment_id))).open) == 1
        since_us = self._now_us() - (batch.deadline_us - batch.created_us)
        wait = partial(store.wait_again, batch=batch, since_us=since_us)
        if waiting := await self._write_of(batch, wait):
            log.info("batch %s is too much for its provider now: %d questions wait", batch.batch_id, waiting)
            self._room.was_too_much(batch.experiment_id, waiting, alone=alone)
        self._forget(batch)

    async def _store(self, batch: Open, results: list[BatchResult]) -> None:
        stored = {}
        for result in results:
            if isinstance(result.error, BatchCancelled) and batch.stop_reason == EXPERIMENT:
                continue  # it waits on, should the experiment be resumed
            stored[result.item_id] = _stored(result)
        await self._write_of(batch, partial(store.resolve, batch=batch, results=stored))
        self._changed(batch.experiment_id)

    async def _end(self, batch: Open) -> None:
        left = await self._write_of(batch, partial(store.end, batch=batch))
        if left and batch.stop_reason != EXPERIMENT:
            log.info("batch %s left %d questions, which are asked directly", batch.batch_id, left)
        self._forget(batch)

    def _forget(self, batch: Open) -> None:
        self._due.pop(batch.batch_id, None)
        self._untried.discard(batch.batch_id)
        self._changed(batch.experiment_id)

    async def _write_of(self, batch: Open, work: Callable[[sa.Connection], T]) -> T | None:
        """Writes; of an experiment that was deleted only that its batch is over."""
        try:
            return await self._database.write(work)
        except ExperimentNotFound:
            await self._database.write(partial(store.forget, batch=batch))
            return None

    def _now_us(self) -> int:
        return microseconds(self._clock.now())


def _stored(result: BatchResult) -> tuple[str, str | None]:
    """What is kept of a result. What may go well another time is asked directly."""
    if result.completion is not None:
        return ANSWERED, answer_text(result.completion)
    if result.error is None or result.error.retryable:
        return DIRECT, None
    return FAILED, error_text(result.error)
