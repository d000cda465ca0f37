"""Values and leases in Redis: one round trip for a list, or in a cluster one for each slot that it touches."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

from promptlooper.breaker import BreakerState
from promptlooper.cache.purges import ANY, NUMBER, Purge
from promptlooper.cache.store import scripts
from promptlooper.cache.store.contract import Claim, Claims, Lease, Wanted
from promptlooper.clock import Clock, SystemClock
from promptlooper.redis_access import RedisAccess, Script

_VALUES = "promptlooper:cache:1:"  # 1 is the version of the layout
_LEASES = "promptlooper:lease:1:"
_PURGES = "promptlooper:purges:1"
_COUNTS = "promptlooper:counts:1"
_MOST_KEYS = 500  # in one script: Redis does nothing else while it runs
_SLOTS = 64  # that a cluster's values and leases are spread over; a list of look-ups takes at most so many scripts
_LEASE_OF = {0: Lease.NOT_ASKED, 1: Lease.HELD, 2: Lease.TAKEN}
T = TypeVar("T")
_GLOB = re.compile(r"([*?\[\]\\^])")


class RedisStore:
    """An async context manager. Entering does not connect: Redis may come and go at any time.

    `value_ttl` and `timeout` are seconds. A call that finds Redis silent fails after `timeout`; after three such calls
    in a row the others fail at once, until Redis answers again. `cluster`: the URL is that of any node.
    """

    backend = "redis"

    def __init__(
        self,
        url: str,
        *,
        password_file: Path | None = None,
        ca_file: Path | None = None,
        value_ttl: float = 30 * 86400.0,
        timeout: float = 0.1,
        cluster: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._access = RedisAccess(
            url,
            cluster=cluster,
            timeout=timeout,
            clock=clock or SystemClock(),
            password_file=password_file,
            ca_file=ca_file,
        )
        self._value_ttl_ms = max(1, int(value_ttl * 1000))

    @property
    def breaker(self) -> BreakerState:
        return self._access.breaker.state

    @property
    def is_up(self) -> bool:
        """False while Redis does not answer, and so is not asked."""
        return self._access.breaker.is_closed

    @property
    def failures(self) -> int:
        """Calls that Redis did not answer, or not in time: those that the breaker refused are not among them."""
        return self._access.failures

    @property
    def refusals(self) -> int:
        """Calls that Redis answered with an error, such as out of memory."""
        return self._access.refusals

    async def __aenter__(self) -> RedisStore:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._access.aclose()

    async def claim(self, wanted: Sequence[Wanted], claimant_id: str, lease_ttl: float) -> Claims:
        seen = [b"" if one.seen is None else b"=" + one.seen for one in wanted]

        def args(places: Sequence[int]) -> list[Any]:
            some = [seen[place] for place in places]
            return [claimant_id, _ms(lease_ttl), *(some if any(some) else ())]

        answers, number = await self._with_purges(scripts.CLAIM, [one.key for one in wanted], args)
        return [self._claim_of(answer) for answer in answers], number

    async def renew(self, keys: Sequence[str], claimant_id: str, lease_ttl: float) -> list[bool]:
        async def renewed(places: Sequence[int]) -> list[Any]:
            leases = [_LEASES + self._name(keys[place]) for place in places]
            return self._list(await self._access.run(scripts.RENEW, leases, [claimant_id, _ms(lease_ttl)]), len(leases))

        return [answer == 1 for answer in await self._in_slots(keys, renewed)]

    async def store(self, entries: Sequence[tuple[str, bytes]], claimant_id: str) -> int:
        def args(places: Sequence[int]) -> list[Any]:
            return [claimant_id, self._value_ttl_ms, *(entries[place][1] for place in places)]

        _, number = await self._with_purges(scripts.STORE, [key for key, _ in entries], args)
        return number

    async def release(self, keys: Sequence[str], claimant_id: str) -> None:
        async def released(places: Sequence[int]) -> list[Any]:
            await self._access.run(scripts.RELEASE, [_LEASES + self._name(keys[i]) for i in places], [claimant_id])
            return [None] * len(places)

        await self._in_slots(keys, released)

    async def purge(self, purge: Purge) -> int:
        """Holds from its first step on, which tells all who read. What can be told by its name is then deleted; the
        values of one model are not, and go with time or when they are asked again."""
        await self._access.run(scripts.PURGE, [_PURGES], [purge.pattern])
        if purge.model:
            return 0
        tag = "{??}" if self._access.is_cluster else ""
        scope = "*" if purge == Purge() else f"{_glob(purge.project)}.{_glob(purge.namespace)}:*"
        deleted = 0
        async for keys in self._access.pages(f"{_VALUES}{tag}{scope}"):
            for some in self._by_slot(keys):
                deleted += await self._access.unlink(some)
        return deleted

    async def purges(self) -> Mapping[str, int]:
        return await self._access.hash_of(_PURGES)

    async def add(self, counts: Mapping[str, int], now: int) -> None:
        await self._access.run(scripts.ADD, [_COUNTS], [now, *(word for pair in counts.items() for word in pair)])

    async def counts(self) -> Mapping[str, int]:
        return await self._access.hash_of(_COUNTS)

    async def size(self) -> tuple[int, int]:
        """Our values, and the memory of the whole server."""
        entries = 0
        async for keys in self._access.pages(f"{_VALUES}*"):
            entries += len(keys)
        return entries, await self._access.memory()

    def _name(self, key: str) -> str:
        """In a cluster with a hash tag: value and lease of a key, and all keys of the same tag, are in one slot."""
        return f"{{{int(key[-64:-62], 16) % _SLOTS:02x}}}{key}" if self._access.is_cluster else key

    def _by_slot(self, names: Sequence[bytes]) -> list[list[bytes]]:
        if not self._access.is_cluster:
            return [list(names)]
        tags: dict[bytes, list[bytes]] = {}
        for name in names:
            tags.setdefault(name.partition(b"}")[0], []).append(name)
        return list(tags.values())

    async def _with_purges(
        self, script: Script, keys: Sequence[str], args_of: Callable[[Sequence[int]], list[Any]]
    ) -> tuple[list[Any], int]:
        """The script's answers for values and leases of these keys, and how many purges there were."""
        beside = [] if self._access.is_cluster else [_PURGES]
        numbers: list[int] = []

        async def answered(places: Sequence[int]) -> list[Any]:
            names = [self._name(keys[place]) for place in places]
            both = [_VALUES + name for name in names] + [_LEASES + name for name in names]
            answers = self._list(
                await self._access.run(script, [*both, *beside], args_of(places)), len(names) + len(beside)
            )
            numbers.extend(answers[len(names) :])
            return answers[: len(names)]

        async def counted() -> list[Any]:
            numbers.append(await self._access.field_of(_PURGES, NUMBER))
            return []

        asked = self._in_slots(keys, answered)
        answers = await asked if beside else (await _together([asked, counted()]))[0]
        return answers, max(numbers, default=0)

    async def _in_slots(self, keys: Sequence[str], ask: Callable[[Sequence[int]], Awaitable[list[Any]]]) -> list[Any]:
        """The answers in the order of the keys, asked for in lists of places that one script may take."""
        groups: dict[str, list[int]] = {}
        for place, key in enumerate(keys):
            groups.setdefault(self._name(key)[:4] if self._access.is_cluster else "", []).append(place)
        parts = [group[at : at + _MOST_KEYS] for group in groups.values() for at in range(0, len(group), _MOST_KEYS)]
        if len(parts) == 1:
            return await ask(parts[0])
        found: list[Any] = [None] * len(keys)
        for part, answers in zip(parts, await _together([ask(part) for part in parts]), strict=True):
            for place, answer in zip(part, answers, strict=True):
                found[place] = answer
        return found

    def _list(self, answers: Any, length: int) -> list[Any]:
        if not isinstance(answers, list) or len(answers) != length:
            raise self._access.unavailable("it answered something else than was asked")
        return answers

    def _claim_of(self, answer: Any) -> Claim:
        if isinstance(answer, bytes):
            return answer
        if answer not in _LEASE_OF:
            raise self._access.unavailable("it answered something else than was asked")
        return _LEASE_OF[answer]


async def _together(calls: Sequence[Awaitable[T]]) -> list[T]:
    """All answers. Raises the first error once every call has ended."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return cast(list[T], answers)


def _glob(name: str) -> str:
    return _GLOB.sub(r"\\\1", name) if name else ANY


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
