"""Deletes events that are older than they need to be kept, and what is left of deleted experiments."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from promptlooper.clock import Clock
from promptlooper.errors import ExperimentNotFound, StoreUnavailable
from promptlooper.runner.store import event_log, removal
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.rows import microseconds

log = logging.getLogger("runner.retention")
CHUNK = 1_000  # events deleted in one transaction: others wait for the experiment's lock meanwhile
EXPERIMENTS = 100  # looked at together
EVERY = 60.0  # seconds
AT_LEAST = 1.0
DELETED_KEPT_US = 7 * 24 * 3600 * 1_000_000


class Retention:
    """Every Runner may do it: they take turns by the experiments' locks. `keep` is seconds, 0 for ever; with `relayed`
    nothing is deleted that NATS was not told of."""

    def __init__(self, database: Database, clock: Clock, keep: float, *, relayed: bool) -> None:
        self._database, self._clock, self._keep, self._relayed = database, clock, keep, relayed

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run(), name="retention")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(max(AT_LEAST, min(EVERY, self._keep / 10 or EVERY)))
            try:
                await self.clean()
            except StoreUnavailable as error:
                log.warning("old events stay, the database does not answer: %s", error)
            except Exception:  # the log must not grow for ever because of one fault
                log.exception("old events stay")

    async def clean(self) -> None:
        """Looks at everything once."""
        for experiment_id in await self._database.read(removal.left_behind):
            await removal.remove(self._database, experiment_id)
        now_us = microseconds(self._clock.now())
        forget = partial(event_log.forget_deletions, before_us=now_us - DELETED_KEPT_US, relayed=self._relayed)
        await self._database.write(forget)
        if not self._keep:
            return
        before_us = now_us - round(self._keep * 1_000_000)
        after = ""
        while True:
            look = partial(
                event_log.with_old_events, before_us=before_us, limit=EXPERIMENTS, after=after, relayed=self._relayed
            )
            found = await self._database.read(look)
            for experiment_id in found:
                await self._clean(experiment_id, before_us)
            if len(found) < EXPERIMENTS:
                return
            after = found[-1]

    async def _clean(self, experiment_id: str, before_us: int) -> None:
        delete = partial(
            event_log.delete_old_events,
            experiment_id=experiment_id,
            before_us=before_us,
            limit=CHUNK,
            relayed=self._relayed,
        )
        count = CHUNK
        try:
            while count == CHUNK:
                count = await self._database.write(delete)
        except ExperimentNotFound:
            log.debug("experiment %s was deleted meanwhile", experiment_id)
