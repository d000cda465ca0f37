"""A connection to NATS that waits for it and comes back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError

AFTER_FAILURE = 0.5


async def _nothing() -> None: ...


async def connected(
    url: str,
    name: str,
    *,
    report: Callable[[Exception], Awaitable[None]],
    interrupted: Callable[[], Awaitable[None]] = _nothing,
    again: Callable[[], Awaitable[None]] = _nothing,
    echo: bool = True,
) -> Client:
    """Goes on until NATS is there, and reconnects for ever after. `report` hears of each failure, `again` of each
    reconnection; without `echo` its subscriptions don't get what it publishes."""
    while True:
        try:
            return await nats.connect(
                url,
                name=name,
                error_cb=report,
                disconnected_cb=interrupted,
                reconnected_cb=again,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,
                connect_timeout=2,
                ping_interval=10,
                max_outstanding_pings=2,
                no_echo=not echo,
                # Nothing is held back for later: events are read from SQL again, in order, and hints are old by then.
                pending_size=0,
            )
        except (NatsError, OSError, TimeoutError) as error:
            await report(error)
            await asyncio.sleep(AFTER_FAILURE)
