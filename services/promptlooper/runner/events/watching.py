"""A watch: snapshot, then events in order, each once, then one terminal message."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial

from promptlooper.clock import Clock
from promptlooper.errors import ResumeTokenExpired, ResumeTokenInvalid
from promptlooper.experiment import Experiment
from promptlooper.experiments import WatchMessage
from promptlooper.jsonvalue import json_text, json_value
from promptlooper.runner.events.hub import Hub
from promptlooper.runner.store import event_log, repository
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.rows import microseconds

PAGE = 500
POLL = 1.0  # seconds after which SQL is read without news from this process
FILTERED_INTERVAL = 0.1  # seconds between reads of a watch that wants only some kinds
BOOKMARK_EVERY = 15.0  # seconds
BOOKMARK_AT_LEAST = 0.2
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

    def __init__(self, database: Database, hub: Hub, clock: Clock) -> None:
        self._database, self._hub, self._clock = database, hub, clock

    async def watch(
        self,
        experiment_id: str,
        resume_token: str = "",
        kinds: Sequence[str] = (),
        bookmark_interval: float | None = None,
    ) -> AsyncIterator[WatchMessage]:
        """Ends after the terminal message, or without one when this process drains."""
        every = max(BOOKMARK_AT_LEAST, min(bookmark_interval or BOOKMARK_EVERY, BOOKMARK_EVERY))
        wanted = sorted({*kinds, *TERMINAL_KINDS}) if kinds else []
        experiment = await self._get(experiment_id)
        if resume_token:
            seq = seq_of(resume_token, experiment_id)
            await self._check_reachable(experiment, seq)
        else:
            seq = experiment.event_seq
            yield WatchMessage(token_of(experiment_id, seq), seq, snapshot=experiment)
            if experiment.state.ended:
                yield WatchMessage(token_of(experiment_id, seq), seq, terminal=experiment)
                return
        with self._hub.listening(experiment_id) as news:
            told = self._clock.monotonic()
            while not self._hub.draining:
                news.clear()
                experiment = await self._get(experiment_id)
                upto = experiment.event_seq
                ended = False
                while seq < upto:
                    read = partial(
                        event_log.events_after,
                        experiment_id=experiment_id,
                        project=experiment.project,
                        event_seq=seq,
                        limit=PAGE,
                        kinds=wanted,
                        up_to=upto,
                    )
                    page = await self._database.read(read)
                    for event in page:
                        seq = event.event_seq
                        ended = event.kind in TERMINAL_KINDS and event.generation == experiment.generation
                        if not kinds or event.kind in kinds:
                            told = self._clock.monotonic()
                            yield WatchMessage(token_of(experiment_id, seq), seq, event=event)
                    if len(page) < PAGE:
                        seq = upto
                if ended or (experiment.state.ended and seq >= upto):
                    yield WatchMessage(token_of(experiment_id, seq), seq, terminal=experiment)
                    return
                if self._clock.monotonic() - told >= every:
                    told = self._clock.monotonic()
                    yield WatchMessage(token_of(experiment_id, seq), seq, bookmark=experiment)
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(POLL, every)):
                        await news.wait()
                if kinds:
                    await self._hub.paced(FILTERED_INTERVAL)

    async def _get(self, experiment_id: str) -> Experiment:
        now_us = microseconds(self._clock.now())
        return await self._database.read(partial(repository.get, experiment_id=experiment_id, now_us=now_us))

    async def _check_reachable(self, experiment: Experiment, seq: int) -> None:
        if seq > experiment.event_seq:
            raise ResumeTokenInvalid("the resume token is newer than the experiment; watch without it")
        read = partial(event_log.earliest_event_seq, experiment_id=experiment.experiment_id)
        earliest = await self._database.read(read)
        if earliest is not None and seq + 1 < earliest:
            raise ResumeTokenExpired(
                f"events before {earliest} are gone; watch again without a token", earliest_event_seq=str(earliest)
            )
