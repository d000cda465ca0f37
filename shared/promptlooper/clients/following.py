"""The events of an experiment: those that there are, and those to come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from promptlooper.errors import ResumeTokenExpired
from promptlooper.experiments import Experiments
from promptlooper.run import Event

T = TypeVar("T")
_PAGE = 500


async def items_of(stream: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """What it yields; it is closed with the generator."""
    try:
        async for item in stream:
            yield item
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


async def kept_events(
    experiments: Experiments,
    experiment_id: str,
    after: int = 0,
    kinds: Sequence[str] = (),
    *,
    limit: int | None = None,
    skipped: Callable[[int], None] | None = None,
) -> AsyncGenerator[Event, None]:
    """The first `limit` after number `after`, of those that have happened. Where the next are no longer kept, `skipped`
    hears which is the earliest that is, and they begin with it; without `skipped`, ResumeTokenExpired is raised."""
    token, left = "", limit
    while True:
        size = _PAGE if left is None else min(_PAGE, left)
        try:
            page = await experiments.list_events(experiment_id, after, size, token, kinds)
        except ResumeTokenExpired as error:
            earliest = int(error.metadata.get("earliest_event_seq", 0))
            if skipped is None or earliest <= after + 1:
                raise
            skipped(earliest)
            after, token = earliest - 1, ""
            continue
        for event in page.events:
            yield event
        left = None if left is None else left - len(page.events)
        token = page.next_page_token
        if not token or left == 0:
            return


async def all_events(
    experiments: Experiments, experiment_id: str, after: int = 0, kinds: Sequence[str] = ()
) -> AsyncGenerator[Event, None]:
    """Those after number `after`, in order and each once, to the end of the experiment: first those that have happened,
    then the others as they do. From 0 they begin with the earliest that is kept; after another number,
    ResumeTokenExpired is raised where the next are no longer kept."""
    async with aclosing(items_of(experiments.watch(experiment_id, kinds=kinds))) as messages:
        async for message in messages:
            if message.snapshot is not None:
                skipped = (lambda earliest: None) if after == 0 else None
                async for event in kept_events(experiments, experiment_id, after, kinds, skipped=skipped):
                    if event.event_seq > message.event_seq:
                        break
                    yield event
            elif message.event is not None and message.event.event_seq > after:
                yield message.event
