"""Connections and threads: writes in one thread, reads beside them, neither on the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from promptlooper.errors import InvalidArgument, StoreUnavailable
from promptlooper.reloading import secret

log = logging.getLogger("runner.store")
T = TypeVar("T")
# SQLSTATE classes: read-only (in a failover), out of resources, shut down by an operator.
UNAVAILABLE_CLASSES = ("25", "53", "57")
ANSWER_WITHIN = 8.0  # seconds: less than callers wait
READERS, URGENT_READERS = 4, 2  # threads
# A connection whose other end is gone is given up after some seconds: the system's own limit is a quarter of an hour.
CONNECT: dict[str, Any] = {
    "connect_timeout": 3,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}
LOCK_OPTIONS = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
PING_AFTER = 1.0  # seconds that a connection was not used
IDLE_AT_MOST = 8.0  # seconds that a frozen Runner may hold a lock: less than its lease


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def _normal_url(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise InvalidArgument(
            "the database URL can't be read; write postgresql://USER@HOST:PORT/NAME or sqlite:///PATH"
        ) from error
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise InvalidArgument(f"the database {parsed.get_backend_name()!r} is not supported; use postgresql or sqlite")
    return parsed


class Database:
    """`await write(fn)` and `await read(fn)` call `fn(connection)` inside a transaction, in a thread of their own.

    `write` commits unless fn raises. A database that does not answer is StoreUnavailable; after it a commit may or may
    not have happened. What takes longer than `within` seconds does not answer. Short reads that work waits for are
    `urgent`: they have threads of their own and don't wait for a client's long ones. In-memory SQLite (for tests) reads
    through the writer's connection.
    """

    def __init__(
        self,
        url: str,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        idle_at_most: float = IDLE_AT_MOST,
        password_file: Path | None = None,
    ) -> None:
        """`now_us` is SQLite's clock, in microseconds since the epoch; PostgreSQL has its own. Its password, where a
        file has it, is read for each connection."""
        if password_file is not None:
            secret(password_file, "the password of PostgreSQL")
        self._password_file = password_file
        self.url, self._now_us, self._idle_at_most = _normal_url(url), now_us, idle_at_most
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.is_up = True  # as of the last call
        in_memory = self.is_sqlite and self.url.database in (None, "", ":memory:")
        self._write_engine = self._engine(writes=True)
        self._read_engine = self._write_engine if in_memory else self._engine(writes=False)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sql-write")
        self._leases = ThreadPoolExecutor(1, thread_name_prefix="sql-lease")
        self._readers = self._urgent = self._writer
        if not in_memory:
            self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="sql-read")
            self._urgent = ThreadPoolExecutor(URGENT_READERS, thread_name_prefix="sql-urgent")

    def _engine(self, *, writes: bool) -> sa.Engine:
        if not self.is_sqlite:
            options = (
                "-c statement_timeout=60000 -c lock_timeout=5000 "
                f"-c idle_in_transaction_session_timeout={int(self._idle_at_most * 1000)} "
                "-c application_name=promptlooper-runner"
            )
            connect = {**CONNECT, "options": options}
            threads = 1 if writes else READERS + URGENT_READERS + 1  # one is for leases
            engine = sa.create_engine(
                self.url, hide_parameters=True, pool_size=threads, max_overflow=0, connect_args=connect
            )
            _ping_after_a_pause(engine)
            return self._with_password(engine)
        engine = sa.create_engine(
            self.url,
            hide_parameters=True,  # they are prompts and outputs, and errors go to the log
            poolclass=sa.pool.StaticPool if self.url.database in (None, "", ":memory:") else sa.pool.QueuePool,
            connect_args={"check_same_thread": False, "timeout": 5.0},
        )

        @sa.event.listens_for(engine, "connect")
        def _configure(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # BEGIN is ours: the driver's own would be deferred
            connection.create_function("now_us", 0, self._now_us)
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "trusted_schema=OFF"):
                connection.execute(f"PRAGMA {pragma}")

        @sa.event.listens_for(engine, "begin")
        def _begin(connection: sa.Connection) -> None:
            # A deferred transaction that reads before it writes fails with SQLITE_BUSY whatever the timeout.
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        return engine

    def _with_password(self, engine: sa.Engine) -> sa.Engine:
        if (path := self._password_file) is not None:

            @sa.event.listens_for(engine, "do_connect")
            def _add_password(dialect: Any, record: Any, args: Any, options: dict[str, Any]) -> None:
                try:
                    options["password"] = secret(path, "the password of PostgreSQL")
                except InvalidArgument as error:
                    raise dialect.dbapi.OperationalError(error.message) from None  # as a server that is away

        return engine

    @contextmanager
    def _transaction(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except (OperationalError, PoolTimeout, sa.exc.InterfaceError) as error:
            if "no such " in _cause(
                error
            ):  # SQLite's word for a table or column that is missing: trying again is no help
                raise
            raise StoreUnavailable(f"the database does not answer: {_cause(error)}") from error
        except DBAPIError as error:
            state = getattr(error.orig, "sqlstate", None) or ""
            if error.connection_invalidated or state[:2] in UNAVAILABLE_CLASSES:
                raise StoreUnavailable(f"the database does not take writes now: {_cause(error)}") from error
            raise

    def writing(self, fn: Callable[[sa.Connection], T]) -> T:
        """The same as `write`, in the calling thread: for migrations and simulations."""
        with self._transaction(self._write_engine) as connection:
            return fn(connection)

    def reading(self, fn: Callable[[sa.Connection], T]) -> T:
        with self._transaction(self._read_engine) as connection:
            return fn(connection)

    async def write(self, fn: Callable[[sa.Connection], T], *, within: float = ANSWER_WITHIN) -> T:
        return await self._answer(self._writer, partial(self.writing, fn), within)

    async def lease(self, fn: Callable[[sa.Connection], T], *, within: float) -> T:
        """As `write`, but beside it: a lease must not wait for the long work of a client. SQLite has one writer."""
        return await self._answer(self._writer if self.is_sqlite else self._leases, partial(self._leasing, fn), within)

    def _leasing(self, fn: Callable[[sa.Connection], T]) -> T:
        with self._transaction(self._write_engine if self.is_sqlite else self._read_engine) as connection:
            return fn(connection)

    async def read(self, fn: Callable[[sa.Connection], T], *, within: float = ANSWER_WITHIN, urgent: bool = False) -> T:
        return await self._answer(self._urgent if urgent else self._readers, partial(self.reading, fn), within)

    async def _answer(self, threads: ThreadPoolExecutor, work: Callable[[], T], within: float) -> T:
        """A database that is frozen says nothing at all: then its thread is left to wait. What has not begun by then is
        not done any more."""
        try:
            async with asyncio.timeout(within):
                answer = await asyncio.get_running_loop().run_in_executor(threads, work)
            self.is_up = True
            return answer
        except StoreUnavailable:
            self.is_up = False
            raise
        except TimeoutError as error:
            self.is_up = False
            raise StoreUnavailable(f"the database does not answer within {within:g} s") from error

    @asynccontextmanager
    async def advisory_lock(self, number: int) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
        """Tries to take a lock in a session of its own, for as long as the context lasts. What it yields says, whenever
        it is asked, whether this process holds the lock: the server may have ended the session. SQLite has one Runner:
        there it is always held."""
        if self.is_sqlite:
            yield _always
            return
        loop = asyncio.get_running_loop()
        engine = sa.create_engine(
            self.url,
            poolclass=sa.pool.NullPool,
            hide_parameters=True,
            isolation_level="AUTOCOMMIT",
            # The lock of a Runner whose machine is gone must not outlive it for hours.
            connect_args={**CONNECT, "options": LOCK_OPTIONS},
        )
        self._with_password(engine)

        def acquire() -> tuple[sa.Connection, bool]:
            try:
                connection = engine.connect()
                return connection, bool(connection.execute(sa.select(sa.func.pg_try_advisory_lock(number))).scalar())
            except OperationalError as error:
                raise StoreUnavailable(f"the database does not answer: {_cause(error)}") from error

        connection, held = await loop.run_in_executor(self._readers, acquire)

        def ping() -> bool:
            try:
                return connection.execute(sa.select(1)).scalar() == 1
            except DBAPIError:
                return False

        async def holds() -> bool:
            return held and await self._answer(self._urgent, ping, ANSWER_WITHIN)

        try:
            yield holds
        finally:
            await loop.run_in_executor(self._readers, connection.close)  # ends the session, and the lock with it

    def close(self) -> None:
        """Waits for what is under way."""
        self._readers.shutdown(wait=True)
        self._urgent.shutdown(wait=True)
        self._writer.shutdown(wait=True)
        self._leases.shutdown(wait=True)
        self._read_engine.dispose()
        self._write_engine.dispose()


def _ping_after_a_pause(engine: sa.Engine) -> None:
    """Finds connections that the server has ended. Not each time, as the pool's own ping would: that is a tenth of what
    a turn costs."""

    @sa.event.listens_for(engine, "checkin")
    def _used(_: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    @sa.event.listens_for(engine, "checkout")
    def _ping(connection: Any, record: Any, _: Any) -> None:
        if time.monotonic() - record.info.get("used", time.monotonic()) <= PING_AFTER:
            return
        try:
            engine.dialect.do_ping(connection)
        except Exception as error:
            raise sa.exc.DisconnectionError from error  # the pool takes another


async def _always() -> bool:
    return True


def _cause(error: Exception) -> str:
    """The driver's own words, without SQL and parameters."""
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
