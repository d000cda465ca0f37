"""Values and leases in Redis: one round trip for a list."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as NoAnswer

from promptlooper.cache.breaker import Breaker
from promptlooper.cache.store import scripts
from promptlooper.cache.store.contract import Claim, Lease, Wanted
from promptlooper.cache.store.redis_security import with_security
from promptlooper.clock import Clock, SystemClock
from promptlooper.errors import CacheUnavailable, InvalidArgument
from promptlooper.settings import masked

log = logging.getLogger(__name__)

_VALUES = "promptlooper:cache:1:"  # 1 is the version of the layout
_LEASES = "promptlooper:lease:1:"
_MOST_KEYS = 500  # in one script: Redis does nothing else while it runs
_SCAN_COUNT = 1000
_LEASE_OF = {0: Lease.NOT_ASKED, 1: Lease.HELD, 2: Lease.TAKEN}
T = TypeVar("T")
_GLOB = re.compile(r"([*?\[\]\\^])")


class RedisStore:
    """An async context manager. Entering does not connect: Redis may come and go at any time.

    `value_ttl` and `timeout` are seconds. A call that finds Redis silent fails after about twice `timeout`, those after
    it at once, until Redis answers again.
    """

    backend = "redis"

    def __init__(
        self,
        url: str,
        *,
        password_file: Path | None = None,
        ca_file: Path | None = None,
        value_ttl: float = 30 * 86400.0,
        timeout: float = 0.25,
        clock: Clock | None = None,
    ) -> None:
        try:
            url, security = with_security(url, password_file, ca_file)
            # redis-py retries ten times by default; with a frozen Redis one GET then takes half a minute.
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=32,
                timeout=timeout,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                health_check_interval=15,
                retry=Retry(NoBackoff(), 1),
                **security,
            )
        except ValueError as error:
            raise InvalidArgument(f"the Redis URL {masked(url)!r} is wrong: {error}") from None
        self._redis: Redis = Redis.from_pool(pool)
        self._address = masked(url)
        self._value_ttl_ms = max(1, int(value_ttl * 1000))
        self._breaker = Breaker(clock or SystemClock())
        self.refusals = 0
        """Calls that Redis answered with an error, such as out of memory."""
        self._claim = self._redis.register_script(scripts.CLAIM)
        self._store = self._redis.register_script(scripts.STORE)
        self._renew = self._redis.register_script(scripts.RENEW)
        self._release = self._redis.register_script(scripts.RELEASE)

    @property
    def is_up(self) -> bool:
        """False while Redis does not answer, and so is not asked."""
        return self._breaker.is_closed

    async def __aenter__(self) -> RedisStore:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._redis.aclose()

    async def claim(self, wanted: Sequence[Wanted], claimant_id: str, lease_ttl: float) -> list[Claim]:
        claims: list[Claim] = []
        for part in _parts(wanted):
            keys = [one.key for one in part]
            seen = [b"" if one.seen is None else b"=" + one.seen for one in part]
            answers = await self._run(
                self._claim, _both(keys), [claimant_id, _ms(lease_ttl), *(seen if any(seen) else ())]
            )
            claims += (_LEASE_OF[answer] if isinstance(answer, int) else answer for answer in answers)
        return claims

    async def renew(self, keys: Sequence[str], claimant_id: str, lease_ttl: float) -> list[bool]:
        held: list[bool] = []
        for part in _parts(keys):
            answers = await self._run(self._renew, [_LEASES + key for key in part], [claimant_id, _ms(lease_ttl)])
            held += (answer == 1 for answer in answers)
        return held

    async def store(self, entries: Sequence[tuple[str, bytes]], claimant_id: str) -> None:
        for part in _parts(entries):
            values = [value for _, value in part]
            await self._run(self._store, _both([key for key, _ in part]), [claimant_id, self._value_ttl_ms, *values])

    async def release(self, keys: Sequence[str], claimant_id: str) -> None:
        for part in _parts(keys):
            await self._run(self._release, [_LEASES + key for key in part], [claimant_id])

    async def purge(self, scope: str) -> int:
        deleted = 0
        async for keys in self._value_keys(scope):
            deleted += await self._answer(partial(self._redis.unlink, *keys))
        return deleted

    async def size(self) -> tuple[int, int]:
        """Our values, and the memory of the whole server."""
        entries = 0
        async for keys in self._value_keys(""):
            entries += len(keys)
        memory = await self._answer(partial(self._redis.info, "memory"))
        return entries, int(memory["used_memory"])

    async def _value_keys(self, scope: str) -> AsyncIterator[list[bytes]]:
        """In pages. A key may come twice where Redis is changing the size of its table."""
        match = _VALUES + (_GLOB.sub(r"\\\1", scope) + ":*" if scope else "*")
        cursor = 0
        while True:
            cursor, keys = await self._answer(partial(self._redis.scan, cursor, match=match, count=_SCAN_COUNT))
            if keys:
                yield keys
            if not cursor:
                return

    async def _run(self, script: Callable[..., Awaitable[Any]], keys: list[str], args: list[Any]) -> Any:
        return await self._answer(lambda: script(keys, args))

    async def _answer(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        if not self._breaker.admits():
            raise self._unavailable("it did not answer a moment ago")
        try:
            answer = await ask()
        except (NoConnection, NoAnswer) as error:
            if self._breaker.failed():
                log.warning("Redis at %s does not answer: the cache is off until it does (%s)", self._address, error)
            raise self._unavailable(str(error) or "no answer in time") from error
        except RedisError as error:  # it is out of memory, read only, ...: it answers, and refuses
            self.refusals += 1
            if self.refusals in (1, 10, 100) or self.refusals % 1000 == 0:
                log.warning("Redis at %s refused %d calls so far: %s", self._address, self.refusals, error)
            raise self._unavailable(str(error)) from error
        if self._breaker.succeeded():
            log.info("Redis at %s answers again", self._address)
        return answer

    def _unavailable(self, reason: str) -> CacheUnavailable:
        return CacheUnavailable(f"the cache cannot use Redis at {self._address!r}: {reason}")


def _both(keys: list[str]) -> list[str]:
    return [_VALUES + key for key in keys] + [_LEASES + key for key in keys]


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _parts(all_of_them: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(all_of_them), _MOST_KEYS):
        yield all_of_them[start : start + _MOST_KEYS]
