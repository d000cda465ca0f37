"""The embedded composition: all four cores in one process, on files under one folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from promptlooper.adapter.app import gateway_from
from promptlooper.cache.core import CacheCore
from promptlooper.cache.store.local import LocalStore
from promptlooper.runner.app import runner_core
from promptlooper.runner.core import RunnerCore
from promptlooper.runner.store.database import Database, sqlite_url
from promptlooper.runner.store.migrate import prepare
from promptlooper.scorer.registry import ScorerCore

DATABASE, CACHE = "promptlooper.db", "cache.db"


def database_path(home: Path) -> Path:
    return home / DATABASE


@asynccontextmanager
async def embedded(home: Path, providers: Path | None = None, *, slots: int = 1_000) -> AsyncIterator[RunnerCore]:
    """A Runner in this process, with its database and cache under `home`, which is made where it is missing.

    On leaving, running calls are stopped; what was committed stays. Raises InvalidArgument where the providers file is
    wrong, StoreUnavailable where the database can't be opened.
    """
    await asyncio.to_thread(home.mkdir, parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        database = Database(sqlite_url(database_path(home)))
        stack.callback(database.close)
        prepare(database)
        gateway = await stack.enter_async_context(gateway_from(providers))
        cache = CacheCore(await stack.enter_async_context(LocalStore(home / CACHE)))
        core = await stack.enter_async_context(
            runner_core(database, gateway, cache, ScorerCore(), slots=slots, own_only=True)
        )
        yield core
