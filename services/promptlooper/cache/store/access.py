"""The way to Redis: one server or a cluster, asked for no longer than a bound, and not at all while it is silent."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, NoScriptError, RedisClusterException, RedisError
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as NoAnswer
from redis.maint_notifications import MaintNotificationsConfig

from promptlooper.cache.breaker import Breaker
from promptlooper.cache.store.redis_security import with_security
from promptlooper.clock import Clock
from promptlooper.errors import CacheUnavailable, InvalidArgument
from promptlooper.settings import masked

log = logging.getLogger(__name__)

CONNECTIONS = 32
FAILURES = 3  # in a row, then the breaker opens: one answer that came late is no reason to pay for all that follow
_SCAN_COUNT = 1000
_SILENT = (NoConnection, NoAnswer, ClusterDownError, RedisClusterException, TimeoutError)


@dataclass(frozen=True, slots=True)
class Script:
    """What Redis runs as one step."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


class RedisAccess:
    """Raises CacheUnavailable from every call that Redis refuses or does not answer within `timeout` seconds, the wait
    for a connection included; InvalidArgument where the URL or a file can't be taken. Nothing is tried twice."""

    def __init__(
        self,
        url: str,
        *,
        cluster: bool,
        timeout: float,
        clock: Clock,
        password_file: Path | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self.breaker = Breaker(clock, failures=FAILURES)
        self.refusals = 0
        """Calls that Redis answered with an error, such as out of memory."""
        self.is_cluster = cluster
        self._address = masked(url)
        self._timeout = timeout
        self._places = asyncio.Semaphore(CONNECTIONS)
        self._redis = _opened(url, cluster, timeout, password_file, ca_file)

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return await self.ask(partial(self._ran, script, len(keys), *keys, *args))

    async def _ran(self, script: Script, *args: Any) -> Any:
        try:
            return await self._redis.evalsha(script.sha, *args)
        except NoScriptError:  # it was restarted, or this node has not run it yet
            return await self._redis.eval(script.text, *args)

    async def hash_of(self, name: str) -> dict[str, int]:
        """A hash whose values are numbers."""
        found = await self.ask(partial(self._redis.hgetall, name))
        return {key.decode(): int(value) for key, value in found.items()}

    async def field_of(self, name: str, key: str) -> int:
        return int(await self.ask(partial(self._redis.hget, name, key)) or 0)

    async def pages(self, match: str) -> AsyncIterator[list[bytes]]:
        """Keys. One may come twice where Redis is changing the size of its table."""
        for scan in await self._scans():
            cursor = 0
            while True:
                cursor, keys = await self.ask(partial(scan, cursor, match=match, count=_SCAN_COUNT))
                if keys:
                    yield keys
                if not cursor:
                    break

    async def unlink(self, keys: Sequence[bytes]) -> int:
        """Deletes keys of one slot, or any where there is no cluster."""
        return int(await self.ask(partial(self._redis.unlink, *keys)))

    async def memory(self) -> int:
        """Bytes that all servers have in use."""
        all_of_them = {"target_nodes": RedisCluster.PRIMARIES} if self.is_cluster else {}
        said: Any = await self.ask(partial(self._redis.info, "memory", **all_of_them))
        nodes = said.values() if self.is_cluster and "used_memory" not in said else [said]
        return sum(int(node["used_memory"]) for node in nodes)

    async def _scans(self) -> list[Callable[..., Awaitable[Any]]]:
        """One for each server that holds keys of its own."""
        if not isinstance(self._redis, RedisCluster):
            return [self._redis.scan]
        await self.ask(self._redis.initialize)
        return [partial(self._scan_node, self._redis, node) for node in self._redis.get_primaries()]

    @staticmethod
    async def _scan_node(redis: RedisCluster, node: Any, cursor: int, **options: Any) -> Any:
        cursors, keys = await redis.scan(cursor, target_nodes=node, **options)
        return cursors[node.name], keys

    async def ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        if not self.breaker.admits():
            raise self.unavailable("it did not answer a moment ago")
        try:
            # Around it all: each step of a connection that is made anew has the bound of one answer.
            async with asyncio.timeout(self._timeout), self._places:
                answer = await call()
        except _SILENT as error:
            if self.breaker.failed():
                log.warning("Redis at %s does not answer: the cache is off until it does (%s)", self._address, error)
            raise self.unavailable(str(error) or "no answer in time") from error
        except RedisError as error:  # it is out of memory, read only, ...: it answers, and refuses
            self._refused(error)
            raise self.unavailable(str(error)) from error
        if self.breaker.succeeded():
            log.info("Redis at %s answers again", self._address)
        return answer

    def _refused(self, error: Exception) -> None:
        self.refusals += 1
        if self.refusals in (1, 10, 100) or self.refusals % 1000 == 0:
            log.warning("Redis at %s refused %d calls so far: %s", self._address, self.refusals, error)

    def unavailable(self, reason: str) -> CacheUnavailable:
        return CacheUnavailable(f"the cache cannot use Redis at {self._address!r}: {reason}")


def _opened(
    url: str, cluster: bool, timeout: float, password_file: Path | None, ca_file: Path | None
) -> Redis | RedisCluster:
    try:
        given, security = with_security(url, password_file, ca_file)
        # redis-py retries ten times by default; with a frozen Redis one GET then takes half a minute. And while it
        # listens for notices of maintenance, it does not look whether a connection has been closed.
        options: dict[str, Any] = {
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
            "max_connections": CONNECTIONS,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
            **security,
        }
        if cluster:
            return RedisCluster.from_url(given, **options)
        return Redis.from_pool(BlockingConnectionPool.from_url(given, timeout=timeout, **options))
    except (ValueError, RedisClusterException) as error:
        raise InvalidArgument(f"the Redis URL {masked(url)!r} is wrong: {error}") from None
