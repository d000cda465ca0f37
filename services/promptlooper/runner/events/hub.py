"""Tells who waits in this process that an experiment has new events or was changed."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

LOOK_AGAIN = 0.5  # seconds


class News:
    """What one listener has not taken yet: experiment ids, each once."""

    def __init__(self) -> None:
        self._any = asyncio.Event()
        self._urgent = asyncio.Event()
        self._changed, self._advanced = set[str](), set[str]()

    def add(self, changed: Iterable[str], advanced: Iterable[str]) -> None:
        self._changed.update(changed)
        self._advanced.update(advanced)
        if self._changed:
            self._urgent.set()
        self._any.set()

    async def some(self, timeout: float | None = None) -> None:
        """Returns when there is something to take, or after `timeout` seconds."""
        await _within(timeout, self._any)

    async def changes(self, timeout: float) -> None:
        """The same, where only a change is news."""
        await _within(timeout, self._urgent)

    def take(self) -> tuple[list[str], list[str]]:
        """(changed, advanced) since the last call."""
        taken = sorted(self._changed), sorted(self._advanced)
        self._changed.clear()
        self._advanced.clear()
        self._any.clear()
        self._urgent.clear()
        return taken


class Hub:
    """Carries no events: they are read from SQL. Of other processes' commits it hears by hints; who waits looks again
    after `look_again` seconds in any case."""

    def __init__(self, look_again: float = LOOK_AGAIN) -> None:
        self.look_again = look_again
        self.watchers = 0  # watches that are open
        self._drained = False
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._listeners: list[tuple[News, bool]] = []
        self._when_changed: list[Callable[[], None]] = []
        self._when_drained: list[Callable[[], None]] = []

    @property
    def draining(self) -> bool:
        return self._drained

    def advanced(self, experiment_id: str) -> None:
        """New events are committed here. Wakes whoever waits for the experiment."""
        self._tell((), (experiment_id,), here=True)

    def changed(self, experiment_id: str) -> None:
        """A client changed an experiment (created, cancelled, paused, resumed, …): also other Runners should look
        now."""
        self._tell((experiment_id,), (experiment_id,), here=True)

    def heard(self, changed: Iterable[str], advanced: Iterable[str]) -> None:
        """Another Runner's hint."""
        changed = list(changed)
        self._tell(changed, {*changed, *advanced}, here=False)

    def _tell(self, changed: Iterable[str], advanced: Iterable[str], *, here: bool) -> None:
        for experiment_id in advanced:
            for event in self._waiting.get(experiment_id, ()):
                event.set()
        for news, only_here in self._listeners:
            if here or not only_here:
                news.add(changed, advanced)
        if changed:
            for call in self._when_changed:
                call()

    def when_changed(self, call: Callable[[], None]) -> None:
        """Calls `call` whenever an experiment was changed, by a client of this Runner or of another."""
        self._when_changed.append(call)

    def when_drained(self, call: Callable[[], None]) -> None:
        self._when_drained.append(call)

    @contextmanager
    def waiting(self, experiment_id: str, news: asyncio.Event) -> Iterator[None]:
        """Sets `news` whenever the experiment has something new, or the server drains. Clear it before reading: what
        comes during the read sets it again."""
        self._waiting[experiment_id].add(news)
        try:
            yield
        finally:
            self._waiting[experiment_id].discard(news)
            if not self._waiting[experiment_id]:
                del self._waiting[experiment_id]

    @contextmanager
    def listening(self, *, only_here: bool = False) -> Iterator[News]:
        """News of all experiments; with `only_here` without what other Runners told."""
        news = News()
        self._listeners.append((news, only_here))
        try:
            yield news
        finally:
            self._listeners.remove((news, only_here))

    def drain(self) -> None:
        """Ends all waiting: watches end with their token, to be taken up elsewhere."""
        self._drained = True
        for events in self._waiting.values():
            for event in events:
                event.set()
        for call in self._when_drained:
            call()


async def _within(timeout: float | None, event: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout):  # wait_for may swallow a cancellation
            await event.wait()
