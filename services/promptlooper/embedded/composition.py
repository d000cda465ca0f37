"""The embedded composition: all four cores in one process, on files under one folder."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

from promptlooper.adapter.app import gateway_from
from promptlooper.cache.core import CacheCore
from promptlooper.cache.store.local import LocalStore
from promptlooper.clock import SystemClock
from promptlooper.embedded import lockfile
from promptlooper.embedded.home import CACHE, RUNNERS, database_path, said_of
from promptlooper.runner.app import runner_core
from promptlooper.runner.core import RunnerCore
from promptlooper.runner.events.retention import Retention
from promptlooper.runner.store import leases
from promptlooper.runner.store.database import Database, sqlite_url
from promptlooper.runner.store.migrate import prepare
from promptlooper.runner.store.rows import microseconds
from promptlooper.scorer.registry import ScorerCore


class LivingRunners:
    """One locked file per runner_id under `home/runners`: a lock that can be had says that its owner is dead, at once
    and without waiting for a lease."""

    def __init__(self, home: Path) -> None:
        self._folder = home / RUNNERS
        self._folder.mkdir(exist_ok=True)
        self._held: dict[Path, int] = {}

    def hold(self, runner_id: str) -> None:
        path = self._folder / f"{runner_id}.lock"
        self._held[path] = lockfile.hold(path)

    @contextmanager
    def dead(self) -> Iterator[list[str]]:
        """The ids of Runners that died; on leaving they are forgotten. No other process gets the same ones
        meanwhile."""
        found: dict[Path, int] = {}
        try:
            for path in self._folder.glob("*.lock"):
                with suppress(FileNotFoundError):  # its process has just left
                    if (descriptor := lockfile.lock_of_dead(path, fcntl.LOCK_EX)) is not None:
                        found[path] = descriptor
            yield [path.stem for path in found]
            for path in found:
                path.unlink(missing_ok=True)
        finally:
            for descriptor in found.values():
                os.close(descriptor)

    def release(self) -> None:
        for path, descriptor in self._held.items():
            path.unlink(missing_ok=True)
            os.close(descriptor)
        self._held.clear()


@asynccontextmanager
async def embedded(home: Path, providers: Path | None = None, *, slots: int = 1_000) -> AsyncIterator[RunnerCore]:
    """A Runner in this process, with its database and cache under `home`, which is made where it is missing.

    Runs that a killed process left behind are taken from it, so that their experiments can be resumed, cancelled and
    deleted. It works only on what is created, resumed or retried through it. On leaving, running calls are stopped;
    what was committed stays. Raises InvalidArgument where the providers file is wrong, StoreUnavailable where the
    database can't be opened.
    """
    async with AsyncExitStack() as stack:
        with said_of(home):
            core = await stack.enter_async_context(_opened(home, providers, slots))
        yield core


@asynccontextmanager
async def _opened(home: Path, providers: Path | None, slots: int) -> AsyncIterator[RunnerCore]:
    await asyncio.to_thread(home.mkdir, parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        database = Database(sqlite_url(database_path(home)))
        stack.callback(database.close)
        prepare(database)
        living = LivingRunners(home)
        stack.callback(living.release)
        with living.dead() as dead:
            if dead:
                bury = partial(leases.bury_runners, dead=dead, now_us=microseconds(SystemClock().now()))
                await database.write(bury)
        gateway = await stack.enter_async_context(gateway_from(providers))
        cache = CacheCore(await stack.enter_async_context(LocalStore(home / CACHE)))
        await stack.enter_async_context(cache.counts.told())
        await stack.enter_async_context(Retention(database, SystemClock(), 0, relayed=False).running())
        core = runner_core(database, gateway, cache, ScorerCore(), slots=slots, own_only=True, registered=living.hold)
        yield await stack.enter_async_context(core)
