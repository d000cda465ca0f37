"""A watch: snapshot, then events in order, each once, then one terminal message. And the events by the page."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial

from promptlooper.clock import Clock
from promptlooper.errors import InvalidArgument, ResumeTokenInvalid
from promptlooper.experiment import Experiment
from promptlooper.experiments import EventPage, WatchMessage
from promptlooper.jsonvalue import json_text, json_value
from promptlooper.runner import page_tokens
from promptlooper.runner.events.hub import Hub
from promptlooper.runner.events.tail import PAGE, RING_EVENTS, Tails
from promptlooper.runner.store import event_log
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.rows import microseconds

BOOKMARK_EVERY = 15.0  # seconds
BOOKMARK_AT_LEAST = 0.2
LIST_BYTES = 3 * 1024 * 1024
CAUGHT_UP_BYTES = 512 * 1024  # of a page that one watcher has from SQL
TERMINAL_KINDS = frozenset({"experiment.completed", "experiment.cancelled", "experiment.failed"})


def token_of(experiment_id: str, event_seq: int) -> str:
    """Opaque to clients: all events up to event_seq are theirs."""
    return base64.urlsafe_b64encode(json_text([1, experiment_id, event_seq]).encode()).decode().rstrip("=")


def seq_of(token: str, experiment_id: str) -> int:
    try:
        version, of, event_seq = json_value(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, TypeError, binascii.Error) as error:
        raise ResumeTokenInvalid(f"resume token {token!r} was not given by this server; watch without it") from error
    if version != 1 or of != experiment_id or not isinstance(event_seq, int) or event_seq < 0:
        raise ResumeTokenInvalid(f"resume token {token!r} is of another experiment; watch without it")
    return event_seq


class Watching:
    """Watches over one database and hub."""

    def __init__(self, database: Database, hub: Hub, clock: Clock, *, ring_events: int = RING_EVENTS) -> None:
        self._database, self._hub, self._clock = database, hub, clock
        self._tails = Tails(database, hub, clock, ring_events=ring_events)

    async def watch(
        self,
        experiment_id: str,
        resume_token: str = "",
        kinds: Sequence[str] = (),
        bookmark_interval: float | None = None,
    ) -> AsyncIterator[WatchMessage]:
        """Ends after the terminal message, or without one when this process drains. Raises ResumeTokenExpired where
        events that are still to come have been deleted, ExperimentNotFound where the experiment was."""
        every = max(BOOKMARK_AT_LEAST, min(bookmark_interval or BOOKMARK_EVERY, BOOKMARK_EVERY))
        seq = seq_of(resume_token, experiment_id) if resume_token else None
        experiment = await self._start(experiment_id, seq)
        if seq is None:
            seq = experiment.event_seq
            yield WatchMessage(token_of(experiment_id, seq), seq, snapshot=experiment)
            if experiment.state.ended:
                yield WatchMessage(token_of(experiment_id, seq), seq, terminal=experiment)
                return
        wanted = sorted({*kinds, *TERMINAL_KINDS}) if kinds else []
        told = self._clock.monotonic()
        seat = self._tails.join(experiment, seq, wanted)
        tail = seat.tail
        try:
            while not self._hub.draining:
                moved = tail.moved
                if tail.error is not None:
                    raise tail.error.with_traceback(None)  # one error for all watchers
                page = tail.after(seq)
                if page is None:
                    page = await self._caught_up(experiment, seq, wanted, tail.event_seq)
                for event in page.events:
                    if not kinds or event.kind in kinds:
                        seat.place.event_seq = seq = event.event_seq
                        if every == BOOKMARK_EVERY:  # a shorter one keeps counts fresh, between events too
                            told = self._clock.monotonic()
                        yield WatchMessage(token_of(experiment_id, seq), seq, event=event)
                        if self._hub.draining:
                            return
                seat.place.event_seq = seq = max(seq, page.event_seq)
                if tail.experiment.event_seq >= experiment.event_seq:  # else it has not read what this watch began with
                    experiment = tail.experiment
                # Equal, for a tail that another watch left behind may still tell of an end before this watch's start.
                if experiment.state.ended and seq == experiment.event_seq:
                    yield WatchMessage(token_of(experiment_id, seq), seq, terminal=experiment)
                    return
                left = told + every - self._clock.monotonic()
                if left <= 0 and seq <= experiment.event_seq:
                    told, left = self._clock.monotonic(), every
                    yield WatchMessage(token_of(experiment_id, seq), seq, bookmark=experiment)
                if seq >= tail.event_seq:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(left if left > 0 else None):  # wait_for may swallow a cancellation
                            await moved.wait()
        finally:
            await self._tails.leave(seat)

    async def list_events(
        self,
        experiment_id: str,
        after_event_seq: int = 0,
        page_size: int = 0,
        page_token: str = "",
        kinds: Sequence[str] = (),
    ) -> EventPage:
        """Raises ResumeTokenExpired where the events that come next are no longer kept."""
        if after_event_seq < 0:
            raise InvalidArgument(f"after_event_seq {after_event_seq} is negative", field="after_event_seq")
        bound_to = ["events", experiment_id, sorted(set(kinds))]
        place = page_tokens.place_of(page_token, bound_to)
        seq = after_event_seq if place is None else int(place[0])
        limit = page_tokens.page_size_of(page_size)
        experiment, page = await self._database.read(
            partial(
                event_log.news_after,
                experiment_id=experiment_id,
                event_seq=seq,
                limit=limit + 1,
                kinds=sorted(set(kinds)),
                now_us=self._now_us(),
                at_most_bytes=LIST_BYTES,
            )
        )
        shown = tuple(page.events[:limit])
        more = len(page.events) > limit or page.event_seq < experiment.event_seq
        return EventPage(shown, page_tokens.page_token([shown[-1].event_seq], bound_to) if shown and more else "")

    async def _start(self, experiment_id: str, event_seq: int | None) -> Experiment:
        start = partial(
            event_log.start_of_watch, experiment_id=experiment_id, event_seq=event_seq, now_us=self._now_us()
        )
        return await self._database.read(start)

    async def _caught_up(
        self, experiment: Experiment, event_seq: int, kinds: Sequence[str], up_to: int
    ) -> event_log.LogPage:
        """A page of what the tail has no more."""
        read = partial(
            event_log.page_after,
            experiment_id=experiment.experiment_id,
            project=experiment.project,
            event_seq=event_seq,
            limit=PAGE,
            kinds=kinds,
            up_to=up_to,
            at_most_bytes=CAUGHT_UP_BYTES,
        )
        return await self._database.read(read)

    def _now_us(self) -> int:
        return microseconds(self._clock.now())
