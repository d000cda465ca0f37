"""The real store on one in-memory SQLite, and between it and each Runner a network that loses and delays."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

import sqlalchemy as sa
from simulation.schedule import LEASE_TTL, Odds

from promptlooper.errors import DomainError, StoreUnavailable
from promptlooper.runner.store.database import ANSWER_WITHIN, Database
from promptlooper.runner.store.migrate import prepare
from promptlooper.runner.store.models import metadata
from promptlooper.testing.simulation import Process, ProcessState, SimulatedLoop

T = TypeVar("T")
Fn = Callable[[sa.Connection], Any]
AfterWrite = Callable[[sa.Connection, Process], None]
NOBODY = Odds()


class Disk:
    """A database that is made once and emptied for each simulation: migrating it takes longer than a simulation."""

    def __init__(self) -> None:
        self.now_us: Callable[[], int] = lambda: 0
        self._database = Database("sqlite://", now_us=lambda: self.now_us())
        prepare(self._database)
        # One session for all: `Database` takes one from its pool for each transaction, which costs as much as a turn.
        self._raw: Any = self._database.reading(lambda connection: connection.connection.driver_connection)
        engine = sa.create_engine("sqlite://", creator=lambda: self._raw, poolclass=sa.pool.StaticPool)
        self._session = engine.connect()

    def wipe(self, now_us: Callable[[], int]) -> None:
        self.now_us = now_us

        def empty(connection: sa.Connection) -> None:
            for table in metadata.sorted_tables:
                connection.exec_driver_sql(f"DELETE FROM {table.name}")

        self.transaction(empty)

    def transaction(self, fn: Callable[[sa.Connection], T]) -> T:
        """As `Database` does it."""
        with self._session.begin():
            self._raw.execute("BEGIN IMMEDIATE")
            return fn(self._session)

    def close(self) -> None:
        self._session.close()
        self._database.close()


class DatabaseServer:
    """Executes transactions one after another, while it is there. `after_write` sees what each is about to commit."""

    def __init__(self, loop: SimulatedLoop, disk: Disk, chance: Random, odds: Odds, after_write: AfterWrite) -> None:
        self.loop, self.chance, self.odds = loop, chance, odds
        self._disk, self._after_write = disk, after_write
        self.context = copy_context()  # of nobody's process
        self.out_until = self.frozen_until = 0.0
        self.faults: Counter[str] = Counter()
        self.refused: list[str] = []  # what the store raised that no client may ever see
        self.transactions = 0

    @property
    def out(self) -> bool:
        return self.loop.time() < self.out_until

    def heal(self) -> None:
        self.odds = NOBODY
        self.out_until = self.frozen_until = 0.0

    def execute(self, fn: Fn, process: Process, *, writes: bool) -> Any:
        self.transactions += 1

        def observed(connection: sa.Connection) -> Any:
            answer = fn(connection)
            self._after_write(connection, process)
            return answer

        try:
            return self._disk.transaction(observed if writes else fn)
        except DomainError:
            raise
        except Exception as error:
            self.refused.append(f"{type(error).__name__}: {error}")
            raise

    def read(self, fn: Callable[[sa.Connection], T]) -> T:
        """At once, for who checks."""
        return self._disk.transaction(fn)


@dataclass(slots=True)
class _Request:
    fn: Fn
    writes: bool
    queued: bool  # one at a time
    answer: asyncio.Future[Any]


class SimulatedDatabase:
    """`Database` as one Runner sees it: one write at a time, and reads and leases beside it."""

    is_sqlite = True

    def __init__(self, server: DatabaseServer, process: Process, troubled: Callable[[float], None]) -> None:
        """`troubled` hears of each request of this Runner alone that goes wrong, and for how many seconds."""
        self._server, self._process, self._troubled = server, process, troubled
        self._waiting: deque[_Request] = deque()
        self._writing = False

    async def write(self, fn: Callable[[sa.Connection], T], *, within: float = ANSWER_WITHIN) -> T:
        return await self._ask(fn, within, writes=True, queued=True)

    async def lease(self, fn: Callable[[sa.Connection], T], *, within: float) -> T:
        return await self._ask(fn, within, writes=True)

    async def read(self, fn: Callable[[sa.Connection], T], *, within: float = ANSWER_WITHIN, urgent: bool = False) -> T:
        return await self._ask(fn, within, writes=False)

    @asynccontextmanager
    async def advisory_lock(self, number: int) -> AsyncIterator[bool]:
        yield True

    def close(self) -> None:
        """The database is everyone's."""

    async def _ask(self, fn: Callable[[sa.Connection], T], within: float, *, writes: bool, queued: bool = False) -> T:
        request = _Request(fn, writes, queued, self._server.loop.create_future())
        if queued:
            self._waiting.append(request)
            self._next_write()
        else:
            self._send(request)
        try:
            async with asyncio.timeout(within):
                answer: T = await request.answer
                return answer
        except TimeoutError as error:
            self._server.faults["request timed out"] += 1
            raise StoreUnavailable(f"the database does not answer within {within:g} s") from error

    def _next_write(self) -> None:
        """Like the one thread that writes: what was given up before its turn came is not done any more."""
        while self._waiting and not self._writing:
            request = self._waiting.popleft()
            if not request.answer.cancelled():
                self._writing = True
                self._send(request)

    def _send(self, request: _Request) -> None:
        server, chance = self._server, self._server.chance
        latency = chance.uniform(0.0005, 0.01)
        if chance.random() < server.odds.request_slow:
            latency = chance.uniform(0.05, 2 * LEASE_TTL)
            self._fault("request slow", latency)
        # What is on the wire arrives, whatever becomes of its sender; else the sender must be awake to send it.
        on_the_wire = chance.random() < 0.5
        context = server.context.copy() if on_the_wire else self._process.context()
        server.loop.call_later(latency, self._arrive, request, context=context)

    def _arrive(self, request: _Request) -> None:
        server, chance = self._server, self._server.chance
        if self._process.state is ProcessState.BURIED:
            self._answer(request, None, StoreUnavailable("this process is dead"))
            return
        if server.loop.time() < server.frozen_until:
            server.loop.call_at(server.frozen_until + chance.uniform(0, 0.02), self._arrive, request)
            return
        if server.out:
            server.faults["request in outage"] += 1
            self._answer(request, None, StoreUnavailable("no database is there"))
            return
        if chance.random() < server.odds.request_fails:
            self._fault("request failed")
            self._answer(request, None, StoreUnavailable("the request was lost"))
            return
        try:
            answer, error = server.execute(request.fn, self._process, writes=request.writes), None
        except Exception as raised:
            answer, error = None, raised
        if chance.random() < server.odds.answer_lost:
            self._fault("answer lost after commit" if request.writes else "answer lost")
            answer, error = None, StoreUnavailable("the answer was lost")
        self._answer(request, answer, error)

    def _answer(self, request: _Request, answer: Any, error: Exception | None) -> None:
        latency = self._server.chance.uniform(0.0005, 0.01)
        self._server.loop.call_later(latency, self._deliver, request, answer, error, context=self._process.context())

    def _deliver(self, request: _Request, answer: Any, error: Exception | None) -> None:
        if error is None and self._server.out:
            self._server.faults["answer lost in outage"] += 1
            error = StoreUnavailable("the database went away")
        if not request.answer.done():
            if error is None:
                request.answer.set_result(answer)
            else:
                request.answer.set_exception(error)
        if request.queued:
            self._writing = False
            self._next_write()

    def _fault(self, kind: str, seconds: float = 0.0) -> None:
        self._server.faults[kind] += 1
        self._troubled(seconds)
