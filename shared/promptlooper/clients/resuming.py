"""Streams that go on after a cut: where they were, not from the start."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from promptlooper.errors import DeadlineExceeded, DomainError, Draining, ServiceUnavailable, StoreUnavailable
from promptlooper.rpc.client import domain_errors

FIRST_WAIT = 0.25  # seconds; doubles with every attempt that brings nothing
LONGEST_WAIT = 5.0
LASTING = 1.0  # seconds that a call was open, for its loss to be news and not the next of many

MessageT = TypeVar("MessageT")


class ResumedStream:
    """Messages of a server-streaming RPC, over as many calls as it takes.

    `open_call` starts where the caller has got to. A call that is cut is followed by another: at once where it had
    lasted, since another replica may be there, else after a random wait (full jitter). `reconnect_for` seconds of
    attempts without a message end it with the ServiceUnavailable of the last one. Errors that another attempt does not
    mend are raised as they come.
    """

    def __init__(
        self,
        address: str,
        reconnect_for: float,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._address = address
        self._reconnect_for = reconnect_for
        self._sleep = sleep

    async def messages(
        self, open_call: Callable[[], Any], kind: type[MessageT], *, until: Callable[[], bool] | None = None
    ) -> AsyncGenerator[MessageT, None]:
        """Ends with the first call that ends well; where there is an `until`, once that is true: before, a call that
        ends well was cut too."""
        loop = asyncio.get_running_loop()
        lost_at: float | None = None
        attempt = 0
        while True:
            opened = loop.time()
            call = open_call()
            try:
                while (message := await self._next(call, kind)) is not None:
                    yield message
                    lost_at, attempt = None, 0
                if until is None or until():
                    return
                cut: DomainError = ServiceUnavailable(
                    f"the Runner at {self._address} ended the stream before its end", address=self._address
                )
            except (ServiceUnavailable, Draining, StoreUnavailable, DeadlineExceeded) as error:
                if until is not None and until():
                    return
                cut = error
            finally:
                call.cancel()
            now = loop.time()
            lost_at = now if lost_at is None else lost_at
            wait = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt))
            if attempt == 0 and now - opened > LASTING:
                wait = 0.0
            if now + wait - lost_at > self._reconnect_for:
                raise self._given_up(cut) from cut
            await self._sleep(wait)
            attempt += 1

    async def _next(self, call: Any, kind: type[MessageT]) -> MessageT | None:
        with domain_errors(self._address, "runner"):
            message = await call.read()
        return message if isinstance(message, kind) else None

    def _given_up(self, cut: DomainError) -> ServiceUnavailable:
        if isinstance(cut, ServiceUnavailable):
            return cut
        return ServiceUnavailable(cut.message, address=self._address)
