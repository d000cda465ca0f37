"""Ledgers in Redis, where all Adapters see them; and what each goes by while Redis is away."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

from promptlooper.adapter.limits.lane import WaitingLane
from promptlooper.adapter.limits.ledger import LEASE, Grant, Ledger, Report, alone, exchanged
from promptlooper.adapter.limits.ledger_text import Unreadable, ledger_of, text_of
from promptlooper.adapter.limits.limiter import Lane
from promptlooper.clock import Clock
from promptlooper.errors import DomainError
from promptlooper.redis_access import RedisAccess, Script

_log = logging.getLogger(__name__)

TICK = 0.25  # seconds between exchanges of a lane that is in use
_LEAST = 0.02  # seconds between exchanges that something new asks for: what comes meanwhile goes along
_SETTLE = 2.5  # seconds after which all replicas have noticed that Redis is back
_TRIES = 20
_LIFE_MS = 3_600_000  # of a ledger that nobody writes any more: for so long it is remembered what a provider takes
_SWAP = Script("""
local now = redis.call('TIME')
local version = redis.call('HGET', KEYS[1], 'version') or ''
if version ~= ARGV[1] then return {now[1], now[2], version, redis.call('HGET', KEYS[1], 'ledger') or ''} end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'ledger', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {now[1], now[2]}
""")
"""Writes the ledger where nobody else has since version ARGV[1]; else answers what is there."""


_NO_VERSION = b"?"  # of no ledger


class Away(DomainError):
    """Redis does not answer, or refuses."""


class _Answer(NamedTuple):
    """What the script answers."""

    time: float
    theirs: tuple[bytes, bytes] | None = None  # version and ledger, where it did not write

    @classmethod
    def of(cls, said: Any) -> _Answer:
        """Raises what shows that it is none."""
        if not isinstance(said, list):
            raise TypeError(f"the answer is {type(said).__name__}")
        seconds, microseconds, *theirs = said
        time = int(seconds) + int(microseconds) / 1e6
        if not theirs:
            return cls(time)
        version, ledger = theirs
        return cls(time, (bytes(memoryview(version)), bytes(memoryview(ledger))))


class Fleet:
    """An async context manager: this replica among those that share a Redis. Entering does not connect."""

    def __init__(
        self,
        url: str,
        clock: Clock,
        name: str,
        *,
        password_file: Path | None = None,
        ca_file: Path | None = None,
        timeout: float = 0.1,
        cluster: bool = False,
    ) -> None:
        self.name = name
        self.clock = clock
        self._access = RedisAccess(
            url,
            cluster=cluster,
            timeout=timeout,
            clock=clock,
            password_file=password_file,
            ca_file=ca_file,
            user="the Adapter",
            meanwhile="each Adapter keeps to its part of the limits",
            away=Away,
        )
        self._ledgers: WeakSet[SharedLedger] = WeakSet()
        self._offset = clock.now().timestamp() - clock.monotonic()
        self._offset_within, self._offset_until = float("inf"), 0.0
        self._versions = 0

    def is_up(self) -> bool:
        return self._access.breaker.is_closed

    def now(self) -> float:
        """Redis's own time: the same for all replicas."""
        return self.clock.monotonic() + self._offset

    def keeper(self, lane: Lane) -> SharedLedger:
        ledger = SharedLedger(self, "\0".join(lane))
        self._ledgers.add(ledger)
        return ledger

    async def swap(self, key: str, version: bytes, ledger: bytes) -> tuple[bytes, bytes | None]:
        """The version that is there now, and the ledger where it is another's, or where Redis's time was not known yet:
        nothing is written with a time of our own. Raises Away."""
        self._versions += 1
        new = f"{self.name}:{self._versions}".encode()
        expected = version if self._offset_until else _NO_VERSION
        began = self.clock.monotonic()
        answer = await self._access.run(_SWAP, [key], [expected, new, ledger, _LIFE_MS], _Answer.of)
        self._told_time(answer.time, began, self.clock.monotonic())
        return (new, None) if answer.theirs is None else answer.theirs

    def _told_time(self, time: float, began: float, ended: float) -> None:
        """The answer that took least says it best; none is believed for ever, as clocks drift."""
        if ended - began <= self._offset_within or ended >= self._offset_until:
            self._offset = time - (began + ended) / 2
            self._offset_within, self._offset_until = ended - began, ended + 30.0

    async def __aenter__(self) -> Fleet:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(ledger.leave() for ledger in self._ledgers))
        await self._access.aclose()


class SharedLedger:
    """Keeps one lane's ledger in Redis. In Cluster, too: it is one key."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self._fleet = fleet
        self._key = f"promptlooper:limits:1:{{{hashlib.sha256(name.encode()).hexdigest()[:32]}}}"
        self._version = b""
        self._text = b""
        self._ledger = Ledger()  # as it was last seen
        self._alone: Ledger | None = None
        self._settled_at = 0.0
        self._replicas = 1
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._lane: WaitingLane | None = None

    def now(self) -> float:
        return self._fleet.now()

    def exchange(self, lane: WaitingLane, *, urgent: bool) -> None:
        self._lane = lane
        if urgent:
            self._wanted.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep(lane))

    async def _keep(self, lane: WaitingLane) -> None:
        """Until nothing happens in the lane any more."""
        idle_since: float | None = None
        while True:
            self._wanted.clear()
            await self._exchange(lane)
            if not lane.is_idle:
                idle_since = None
            elif idle_since is None:
                idle_since = self.now()
            elif self.now() - idle_since > LEASE:
                await self._leave(lane)
                return
            await asyncio.sleep(_LEAST)
            try:
                async with asyncio.timeout(TICK - _LEAST):
                    await self._wanted.wait()
            except TimeoutError:
                pass

    async def leave(self) -> None:
        """Gives everything back at once, if Redis hears it."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
            assert self._lane is not None
            await self._leave(self._lane)

    async def _leave(self, lane: WaitingLane) -> None:
        report = lane.report()
        try:
            await self._swapped(lane, replace(report, wants=0, in_flight=0), leaving=True)
        except Away:
            _log.debug("left without a word to Redis: the lease will run out")
        lane.share.holds = 0

    async def _exchange(self, lane: WaitingLane) -> None:
        report = lane.report()
        if self._alone is not None:
            self._exchange_alone(lane, report, self._alone)
            await self._look_for_others(lane, replace(report, needs=[0.0, 0.0], head=[0.0, 0.0]))
            return
        try:
            grant = await self._swapped(lane, report)
        except Away:
            self._alone, self._settled_at = alone(self._ledger, self._fleet.name, self._replicas, self.now()), 0.0
            self._exchange_alone(lane, report, self._alone)
            return
        self._replicas = grant.replicas
        lane.take(grant, replace(self._ledger.control))
        lane.pump()

    def _exchange_alone(self, lane: WaitingLane, report: Report, ledger: Ledger) -> None:
        grant = exchanged(ledger, self._fleet.name, report, lane.share.rules, self.now())
        lane.take(grant, replace(ledger.control))
        lane.pump()

    async def _look_for_others(self, lane: WaitingLane, report: Report) -> None:
        """Says what was used meanwhile, but takes nothing before the others had time to do so, too."""
        try:
            await self._swapped(lane, report)
        except Away:
            self._settled_at = 0.0
            return
        if not self._settled_at:
            self._settled_at = self.now() + _SETTLE
        elif self.now() >= self._settled_at:
            self._alone = None

    async def _swapped(self, lane: WaitingLane, report: Report, *, leaving: bool = False) -> Grant:
        """Raises Away."""
        fleet, rules = self._fleet, lane.share.rules
        for _ in range(_TRIES):
            ledger = self._read()
            grant = exchanged(ledger, fleet.name, report, rules, fleet.now())
            if leaving:
                ledger.members[fleet.name].lease_until = fleet.now()
                ledger.members[fleet.name].holds = 0
            text = text_of(ledger)
            self._version, theirs = await fleet.swap(self._key, self._version, text)
            if theirs is None:
                self._text, self._ledger = text, ledger
                return grant
            self._text = theirs
        raise Away("others write this ledger all the time")

    def _read(self) -> Ledger:
        """What Redis holds; where that is nothing, what was last seen goes on."""
        text = self._text or text_of(self._ledger)
        try:
            return ledger_of(text)
        except Unreadable:
            _log.warning("what Redis holds at %s is not what an Adapter writes: it is replaced", self._key)
            return ledger_of(text_of(self._ledger))
