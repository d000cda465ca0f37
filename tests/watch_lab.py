"""A Runner whose reads are counted, events made by hand, and watches over gRPC on connections of their own."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import grpc
import sqlalchemy as sa
from runner_lab import Lab

from promptlooper.cache.core import CacheCore
from promptlooper.cache.store.local import LocalStore
from promptlooper.clients.runner import RunnerClient
from promptlooper.experiments import WatchMessage
from promptlooper.rpc.server import serving
from promptlooper.runner.app import runner_core
from promptlooper.runner.core import RunnerCore
from promptlooper.runner.event_facts import NewEvent
from promptlooper.runner.events.hub import Hub
from promptlooper.runner.servicer import SERVICE_NAME, register
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.turns import locked_ledger, number_events
from promptlooper.scorer.registry import ScorerCore

T = TypeVar("T")
NEVER = 3_600.0  # seconds: so late that a test would not see it


class CountingDatabase(Database):
    """Counts reads that are done, by the name of the function that reads."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.reads: Counter[str] = Counter()

    async def read(self, fn: Callable[[sa.Connection], T], **settings: Any) -> T:
        found = await super().read(fn, **settings)
        self.reads[getattr(fn, "func", fn).__name__] += 1
        return found


@dataclass(frozen=True)
class WatchedRunner:
    core: RunnerCore
    database: CountingDatabase
    hub: Hub

    async def append(
        self, experiment_id: str, count: int, *, kind: str = "run.started", age: float = 0.0, padding: int = 0
    ) -> None:
        """Commits events, as a turn does, and says so. `age` is seconds since they are said to have happened, `padding`
        bytes more in the detail of each."""
        new = partial(append_events, experiment_id=experiment_id, count=count, kind=kind, age=age, padding=padding)
        await self.database.write(new)
        self.hub.advanced(experiment_id)


def append_events(
    connection: sa.Connection, experiment_id: str, count: int, kind: str, age: float, padding: int = 0
) -> None:
    ledger = locked_ledger(connection, experiment_id)
    of_a_run = kind.startswith("run.")
    detail = {"variant_id": "0123456789ab", "repeat": 0} if of_a_run else {"state": ledger.state}
    if padding:
        detail["input_id" if of_a_run else "reason"] = "x" * padding
    new = [NewEvent(kind, 0 if of_a_run else None, detail) for _ in range(count)]
    number_events(connection, ledger, new, time.time_ns() // 1000 - int(age * 1e6))


@asynccontextmanager
async def watched_runner(lab: Lab, hub: Hub | None = None, **settings: Any) -> AsyncIterator[WatchedRunner]:
    async with AsyncExitStack() as stack:
        database, hub = CountingDatabase(lab.database_url), hub or Hub()
        stack.callback(database.close)
        store = await stack.enter_async_context(LocalStore(lab.folder / "cache.db"))
        settings = {"failpoints": lab.failpoints, "hub": hub, **settings}
        core = runner_core(database, lab.model, CacheCore(store), ScorerCore(), **settings)
        yield WatchedRunner(await stack.enter_async_context(core), database, hub)


@asynccontextmanager
async def on_the_wire(core: RunnerCore, hub: Hub | None = None) -> AsyncIterator[str]:
    """The address of a server of the core."""
    drain = hub.drain if hub is not None else None
    services = {SERVICE_NAME: partial(register, core=core)}
    async with serving("127.0.0.1:0", services, health_listen="127.0.0.1:0", grace=1.0, on_drain=drain) as server:
        yield f"127.0.0.1:{server.port}"


@asynccontextmanager
async def own_channels(address: str, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Channels that share no connection: a connection carries at most 1,000 streams."""
    async with AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        yield [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options)) for _ in range(count)
        ]


@asynccontextmanager
async def own_connections(address: str, count: int) -> AsyncIterator[list[RunnerClient]]:
    async with own_channels(address, count) as channels:
        yield [RunnerClient(channel, address) for channel in channels]


def seqs(messages: Sequence[WatchMessage]) -> list[int]:
    return [message.event.event_seq for message in messages if message.event is not None]
