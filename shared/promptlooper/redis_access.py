"""The way to Redis: asked for no longer than a bound, and not at all while it is silent."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from redis.asyncio import Redis
from redis.exceptions import (
    ClusterCrossSlotError,
    ClusterDownError,
    InvalidResponse,
    MovedError,
    NoScriptError,
    RedisError,
)
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as NoAnswer

from promptlooper.breaker import Breaker
from promptlooper.clock import Clock
from promptlooper.errors import CacheUnavailable, DomainError, InvalidArgument
from promptlooper.redis_servers import ClusterServers, OneServer, Opener, Servers
from promptlooper.settings import masked

log = logging.getLogger(__name__)

FAILURES = 3  # in a row, then the breaker opens: one answer that came late is no reason to pay for all that follow
_SCAN_COUNT = 1000
_SILENT = (NoConnection, NoAnswer, InvalidResponse, ClusterDownError, TimeoutError)
_LONGEST = 200  # characters of what Redis says that are passed on

Call: TypeAlias = Callable[[Redis], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Script:
    """What Redis runs as one step."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


class RedisAccess:
    """Raises `away` from every call that Redis refuses or does not answer within `timeout` seconds, the wait for a
    connection included; InvalidArgument where the URL or a file can't be taken. Nothing is tried twice. `user` and
    `meanwhile` say in words who uses it, and what is so while it is silent."""

    def __init__(
        self,
        url: str,
        *,
        cluster: bool,
        timeout: float,
        clock: Clock,
        password_file: Path | None = None,
        ca_file: Path | None = None,
        user: str = "the cache",
        meanwhile: str = "the cache is off until it does",
        away: type[DomainError] = CacheUnavailable,
    ) -> None:
        self.breaker = Breaker(clock, failures=FAILURES)
        self.failures = 0
        """Calls that Redis did not answer, or not in time: those that the breaker refused are not among them."""
        self.refusals = 0
        """Calls that Redis answered with an error, such as out of memory."""
        self.is_cluster = cluster
        self._timeout = timeout
        self._user, self._meanwhile, self._away = user, meanwhile, away
        try:
            self._address = masked(url)
            opener = Opener(url, timeout, password_file, ca_file)
        except ValueError as error:
            raise InvalidArgument(f"the Redis URL of PROMPTLOOPER_REDIS_URL is wrong: {error}") from None
        self._servers: Servers = ClusterServers(opener) if cluster else OneServer(opener.opened())

    async def aclose(self) -> None:
        await self._servers.aclose()

    async def run(
        self, script: Script, keys: Sequence[str], args: Sequence[Any], read: Callable[[Any], Any] = lambda said: said
    ) -> Any:
        """What `read` makes of the answer; where it raises, Redis counts as away. All keys are of one slot where there
        is a cluster."""

        async def ran(server: Redis) -> Any:
            try:
                return read(await server.evalsha(script.sha, len(keys), *keys, *args))
            except NoScriptError:  # it was restarted, or has not run it yet
                return read(await server.eval(script.text, len(keys), *keys, *args))

        return await self._ask(keys[0], ran)

    async def hash_of(self, name: str) -> dict[str, int]:
        """A hash whose values are numbers."""

        async def read(server: Redis) -> dict[str, int]:
            said: Any = await server.hgetall(name)
            return {key.decode(): int(value) for key, value in said.items()}

        found: dict[str, int] = await self._ask(name, read)
        return found

    async def field_of(self, name: str, key: str) -> int:
        async def read(server: Redis) -> int:
            return int(await server.hget(name, key) or 0)

        number: int = await self._ask(name, read)
        return number

    async def pages(self, match: str) -> AsyncIterator[list[bytes]]:
        """Keys. One may come twice where Redis is changing the size of its table."""
        for server in await self._bounded(self._answering):
            cursor = 0
            while True:
                cursor, keys = await self._bounded(partial(_page, server, cursor, match))
                if keys:
                    yield keys
                if not cursor:
                    break

    async def unlink(self, keys: Sequence[bytes]) -> int:
        """Deletes keys, of one slot where there is a cluster."""

        async def unlinked(server: Redis) -> int:
            return int(await server.unlink(*keys))

        number: int = await self._ask(keys[0].decode(), unlinked)
        return number

    async def memory(self) -> int:
        """Bytes that all servers have in use."""
        servers = await self._bounded(self._answering)
        return sum([await self._bounded(partial(_memory, server)) for server in servers])

    async def _answering(self) -> Sequence[Redis]:
        """All servers, once each has answered: what only looks them up must not close the breaker."""
        servers = await self._servers.all_of_them()
        await asyncio.gather(*(server.ping() for server in servers))
        return servers

    async def _ask(self, name: str, call: Call) -> Any:
        async def asked() -> Any:
            try:
                return await call(await self._servers.holding(name))
            except MovedError:
                self._servers.forget()
                return await call(await self._servers.holding(name))

        return await self._bounded(asked)

    async def _bounded(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        if not self.breaker.admits():
            raise self.unavailable("it did not answer a moment ago")
        try:
            # Around it all: each step of a connection that is made anew has the bound of one answer.
            async with asyncio.timeout(self._timeout):
                answer = await ask()
        except _SILENT as error:
            raise self._failed(str(error) or "no answer in time") from error
        except RedisError as error:  # it is out of memory, read only, ...: it answers, and refuses
            raise self._refused(f"{error}{self._advice(error)}") from error
        except Exception as error:  # redis-py, or who asked, can make nothing of what it says
            raise self._failed(f"what it says can't be read: {type(error).__name__}: {error}") from error
        if self.breaker.succeeded():
            log.info("Redis at %s answers again", self._address)
        return answer

    def _failed(self, reason: str) -> DomainError:
        self.failures += 1
        self._servers.forget()
        if self.breaker.failed():
            log.warning("Redis at %s does not answer: %s (%s)", self._address, self._meanwhile, reason[:_LONGEST])
        return self.unavailable(reason)

    def _refused(self, reason: str) -> DomainError:
        self.refusals += 1
        if self.refusals in (1, 10, 100) or self.refusals % 1000 == 0:
            log.warning("Redis at %s refused %d calls so far: %s", self._address, self.refusals, reason[:_LONGEST])
        return self.unavailable(reason)

    def _advice(self, error: Exception) -> str:
        if not self.is_cluster and ("CROSSSLOT" in str(error) or isinstance(error, MovedError | ClusterCrossSlotError)):
            return "; it is a cluster: set PROMPTLOOPER_REDIS_CLUSTER=true"
        if self.is_cluster and "cluster support disabled" in str(error):
            return "; it is no cluster: set PROMPTLOOPER_REDIS_CLUSTER=false"
        return ""

    def unavailable(self, reason: str) -> DomainError:
        return self._away(f"{self._user} cannot use Redis at {self._address!r}: {reason[:_LONGEST]}")


async def _page(server: Redis, cursor: int, match: str) -> tuple[int, list[bytes]]:
    said: Any = await server.scan(cursor, match=match, count=_SCAN_COUNT)
    following, keys = said
    if not isinstance(keys, list):
        raise TypeError(f"keys are {type(keys).__name__}")
    return following, keys


async def _memory(server: Redis) -> int:
    return int((await server.info("memory"))["used_memory"])
