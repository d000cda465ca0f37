"""The tail of an experiment's events: read once in this process, however many watch."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from promptlooper.clock import Clock
from promptlooper.experiment import Experiment
from promptlooper.run import Event
from promptlooper.runner.events.hub import Hub
from promptlooper.runner.store import event_log
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.rows import microseconds

READ = 500  # events at once
PAGE = 200  # events that a watcher takes at once, from the ring or from SQL
RING_EVENTS = 2_000
RING_BYTES = 2 * 1024 * 1024
ALL_RINGS_BYTES = 64 * 1024 * 1024  # of all tails together
IN_MEMORY = 2  # times its bytes on the wire is what an event takes here
SOME_KINDS_INTERVAL = 0.1  # seconds between reads where nobody wants all kinds: they need not hear of every commit
_seq = attrgetter("event_seq")


@dataclass(slots=True, eq=False)
class Place:
    """A watcher's own: what it wants (None is all kinds), and up to where it has taken."""

    kinds: frozenset[str] | None
    event_seq: int


class Tail:
    """The newest events of one experiment, for its watchers; `experiment` and `event_seq` are what was read last."""

    def __init__(self, experiment: Experiment, *, ring_events: int = RING_EVENTS) -> None:
        self.experiment = experiment
        self.event_seq = experiment.event_seq
        self.moved = asyncio.Event()  # replaced by another each time that it is set: take it before looking
        self.error: Exception | None = None
        self._ring_events = ring_events
        self._ring, self._sizes, self._bytes = deque[Event](), deque[int](), 0
        self._kept_after = experiment.event_seq  # the ring has all events after this one that anybody wants
        self._places: set[Place] = set()
        self._kinds: frozenset[str] | None = frozenset()

    @property
    def kinds(self) -> frozenset[str] | None:
        """What it reads; None is all kinds."""
        return self._kinds

    def join(self, kinds: frozenset[str] | None, event_seq: int) -> Place:
        place = Place(kinds, event_seq)
        self._places.add(place)
        if self._kinds is not None and (kinds is None or not kinds <= self._kinds):
            self._kinds = None if kinds is None else self._kinds | kinds
            self._forget(len(self._ring))
            self._kept_after = self.event_seq  # what was read before lacks the kinds that are new
        return place

    def leave(self, place: Place) -> bool:
        """Whether it was the last."""
        self._places.discard(place)
        wanted = [other.kinds for other in self._places if other.kinds is not None]
        if len(wanted) == len(self._places):
            self._kinds = frozenset().union(*wanted)
        return not self._places

    def after(self, event_seq: int) -> event_log.LogPage | None:
        """A page of what comes after event_seq; None where the ring has it no more, and SQL must be asked."""
        if event_seq < self._kept_after:
            return None
        ring = self._ring
        start = bisect_right(ring, event_seq, key=_seq)
        stop = min(start + PAGE, len(ring))
        found = [ring[i] for i in range(start, stop)]
        reached = found[-1].event_seq if stop < len(ring) else max(event_seq, self.event_seq)
        return event_log.LogPage(found, (), reached)

    def add(self, experiment: Experiment, page: event_log.LogPage, at_most_bytes: int = RING_BYTES) -> None:
        """What was read after `event_seq`."""
        self.experiment = experiment
        if page.event_seq <= self.event_seq:
            return
        self._ring.extend(page.events)
        sizes = [IN_MEMORY * size for size in page.sizes]
        self._sizes.extend(sizes)
        self._bytes += sum(sizes)
        self.event_seq = page.event_seq
        taken = min((place.event_seq for place in self._places), default=self.event_seq)
        self._forget(bisect_right(self._ring, taken, key=_seq))
        while self._bytes > at_most_bytes or len(self._ring) > self._ring_events:
            self._forget(1)
        self.tell()

    def _forget(self, count: int) -> None:
        for _ in range(count):
            self._kept_after = self._ring.popleft().event_seq
            self._bytes -= self._sizes.popleft()

    def fail(self, error: Exception) -> None:
        self.error = error
        self.tell()

    def tell(self) -> None:
        """Wakes the watchers."""
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()


@dataclass(frozen=True, slots=True, eq=False)
class _Followed:
    tail: Tail
    task: asyncio.Task[None]
    look: asyncio.Event  # set to read now


@dataclass(frozen=True, slots=True)
class Seat:
    """What a watcher has of a tail."""

    tail: Tail
    place: Place
    followed: _Followed


class Tails:
    """A tail for each experiment that is watched here: it begins with the first watcher and ends with the last."""

    def __init__(self, database: Database, hub: Hub, clock: Clock, *, ring_events: int = RING_EVENTS) -> None:
        self._database, self._hub, self._clock, self._ring_events = database, hub, clock, ring_events
        self._tails: dict[str, _Followed] = {}
        hub.when_drained(self._wake_all)

    def __len__(self) -> int:
        return len(self._tails)

    def join(self, experiment: Experiment, event_seq: int, kinds: Collection[str] = ()) -> Seat:
        """A seat at the tail of an experiment that was just read, after event_seq. No kinds are all. Not a context
        manager made of a generator: a loop that ends closes all of them at once, and a watch is one itself."""
        self._hub.watchers += 1
        experiment_id, wanted = experiment.experiment_id, frozenset(kinds) or None
        found = self._tails.get(experiment_id)
        if found is None or found.tail.error is not None:
            tail, look = Tail(experiment, ring_events=self._ring_events), asyncio.Event()
            place = tail.join(wanted, event_seq)
            task = asyncio.create_task(self._follow(tail, look), name=f"tail of {experiment_id}")
            self._tails[experiment_id] = found = _Followed(tail, task, look)
        else:
            place = found.tail.join(wanted, event_seq)
            if experiment.event_seq > found.tail.event_seq:
                found.look.set()
        return Seat(found.tail, place, found)

    async def leave(self, seat: Seat) -> None:
        self._hub.watchers -= 1
        followed = seat.followed
        if not seat.tail.leave(seat.place):
            return
        experiment_id = seat.tail.experiment.experiment_id
        if self._tails.get(experiment_id) is followed:
            del self._tails[experiment_id]
        followed.task.cancel()
        await asyncio.gather(followed.task, return_exceptions=True)

    async def _follow(self, tail: Tail, look: asyncio.Event) -> None:
        """Reads on whenever there is news. What goes wrong is every watcher's to hear."""
        try:
            with self._hub.waiting(tail.experiment.experiment_id, look):
                while not self._hub.draining:
                    look.clear()
                    if await self._read_on(tail):
                        continue
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._hub.look_again):  # wait_for may swallow a cancellation
                            await look.wait()
                    if tail.kinds is not None:
                        await asyncio.sleep(SOME_KINDS_INTERVAL)
        except Exception as error:
            tail.fail(error)

    async def _read_on(self, tail: Tail) -> bool:
        """Whether there is more to read at once."""
        kinds = tail.kinds
        experiment, page = await self._database.read(
            partial(
                event_log.news_after,
                experiment_id=tail.experiment.experiment_id,
                event_seq=tail.event_seq,
                limit=READ,
                kinds=sorted(kinds or ()),
                now_us=microseconds(self._clock.now()),
                at_most_bytes=RING_BYTES,
            ),
            urgent=True,
        )
        if tail.kinds != kinds:
            return True  # who joined meanwhile wants more kinds than were read
        tail.add(experiment, page, min(RING_BYTES, ALL_RINGS_BYTES // max(1, len(self._tails))))
        return page.event_seq < experiment.event_seq

    def _wake_all(self) -> None:
        for followed in self._tails.values():
            followed.tail.tell()
