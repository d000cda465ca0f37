"""Streams that go on after a cut: where they were, not from the start."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from promptlooper.errors import DeadlineExceeded, DomainError, Draining, ServiceUnavailable, StoreUnavailable
from promptlooper.rpc.client import domain_errors

FIRST_WAIT = 0.25  # seconds; doubles with every attempt that brings nothing
LONGEST_WAIT = 5.0
LASTING = 1.0  # seconds that a call was open, for its loss to be news and not the next of many

MessageT = TypeVar("MessageT")


class ConnectionListener(Protocol):
    """Hears when a stream is cut and when it goes on; both at most once in turn."""

    def lost(self, cut: DomainError, patience: float) -> None:
        """Other attempts follow, for `patience` seconds."""

    def back(self) -> None: ...


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
        listener: ConnectionListener | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._address = address
        self._reconnect_for = reconnect_for
        self._listener = listener
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
                    if lost_at is not None:
                        self._heard_again()
                        lost_at, attempt = None, 0
                    yield message
                if until is None or until():
                    if lost_at is not None:
                        self._heard_again()
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
            first, lost_at = lost_at is None, now if lost_at is None else lost_at
            wait = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt))
            if attempt == 0 and now - opened > LASTING:
                wait = 0.0
            if now + wait - lost_at > self._reconnect_for:
                raise self._given_up(cut) from cut
            if first and self._listener is not None:
                self._listener.lost(cut, self._reconnect_for)
            await self._sleep(wait)
            attempt += 1

    def _heard_again(self) -> None:
        if self._listener is not None:
            self._listener.back()

    async def _next(self, call: Any, kind: type[MessageT]) -> MessageT | None:
        with domain_errors(self._address, "runner"):
            message = await call.read()
        return message if isinstance(message, kind) else None

    def _given_up(self, cut: DomainError) -> ServiceUnavailable:
        if isinstance(cut, ServiceUnavailable):
            return cut
        return ServiceUnavailable(cut.message, address=self._address)
