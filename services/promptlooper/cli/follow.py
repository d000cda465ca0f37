"""A watch that outlives lost connections and draining servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from promptlooper.errors import DomainError, Draining, ResumeTokenExpired, ServiceUnavailable, StoreUnavailable
from promptlooper.experiments import Experiments, WatchMessage

EXPERIMENT_KINDS = tuple(
    f"experiment.{verb}"
    for verb in (
        "created",
        "started",
        "paused",
        "resumed",
        "updated",
        "completed",
        "cancelled",
        "failed",
        "deleted",
    )
)
QUIET_KINDS = (*EXPERIMENT_KINDS, "run.failed")
"""What a progress display needs: counts come in bookmarks, so the events of good runs are not sent."""

_PASSING = (Draining, ServiceUnavailable, StoreUnavailable)
_LONGEST_WAIT = 5.0  # seconds between two tries
_TRIES = 60  # in a row without a message: about five minutes


async def follow(
    experiments: Experiments,
    experiment_id: str,
    kinds: Sequence[str] = (),
    bookmark_interval: float | None = None,
    on_lost: Callable[[DomainError], None] = lambda error: None,
) -> AsyncIterator[WatchMessage]:
    """Everything up to the terminal message. A server that was never reached is an error at once; one that was reached
    before is tried again, from the last token, and `on_lost` hears of it once per loss."""
    token, heard, finished, failures = "", False, False, 0
    while True:
        try:
            async for message in experiments.watch(experiment_id, token, kinds, bookmark_interval):
                token, heard, failures = message.resume_token, True, 0
                yield message
                finished = message.terminal is not None
            if finished:
                return
        except ResumeTokenExpired:
            token = ""
        except _PASSING as error:
            if not heard or failures >= _TRIES:
                raise
            if failures == 0:
                on_lost(error)
        else:
            if failures >= _TRIES:
                raise Draining("The server keeps ending the watch. Try again when it is up.")
        failures += 1
        await asyncio.sleep(min(0.1 * 2 ** min(failures, 10), _LONGEST_WAIT))
