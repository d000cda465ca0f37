"""Tells watchers and the relay in this process that an experiment has new events."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Hub:
    """Carries no events: they are read from SQL, so a slow watcher holds no memory and misses nothing. Other processes'
    commits are seen by looking again after `timeout`."""

    def __init__(self) -> None:
        self._drained = asyncio.Event()
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._any, self._advanced = asyncio.Event(), set[str]()

    @property
    def draining(self) -> bool:
        return self._drained.is_set()

    def advanced(self, experiment_id: str) -> None:
        """New events are committed. Wakes whoever waits for the experiment."""
        for event in self._waiting.get(experiment_id, ()):
            event.set()
        self._advanced.add(experiment_id)
        self._any.set()

    def changed(self, experiment_id: str) -> None:
        """A client changed an experiment (created, cancelled, paused, resumed, …): also other Runners should look
        now."""
        self.advanced(experiment_id)

    @contextmanager
    def listening(self, experiment_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the experiment has something new, or the server drains. Clear it before
        reading: what comes during the read sets it again."""
        news = asyncio.Event()
        self._waiting[experiment_id].add(news)
        try:
            yield news
        finally:
            self._waiting[experiment_id].discard(news)
            if not self._waiting[experiment_id]:
                del self._waiting[experiment_id]

    async def paced(self, seconds: float) -> None:
        """Lets `seconds` pass, or less when the server drains: for watchers that need not hear of every commit."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for may swallow a cancellation
                await self._drained.wait()

    async def anything(self, timeout: float) -> list[str]:
        """The experiments that have new events since the last call, waiting up to `timeout` seconds for one. For one
        caller, the relay."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):  # wait_for may swallow a cancellation
                await self._any.wait()
        self._any.clear()
        advanced, self._advanced = self._advanced, set()
        return list(advanced)

    def drain(self) -> None:
        """Ends all waiting: watches end with their token, to be taken up elsewhere."""
        self._drained.set()
        for events in self._waiting.values():
            for event in events:
                event.set()
        self._any.set()
