"""Stops asking what does not answer, so that its callers do not wait for it one after the other."""

from __future__ import annotations

from promptlooper.clock import Clock


class Breaker:
    """After a failure `admits` says no for `rest` seconds; then it lets one try through, whose outcome decides."""

    def __init__(self, clock: Clock, rest: float = 1.0) -> None:
        self._clock = clock
        self._rest = rest
        self._closed = True
        self._next_try = 0.0  # monotonic

    @property
    def is_closed(self) -> bool:
        return self._closed

    def admits(self) -> bool:
        if self._closed:
            return True
        now = self._clock.monotonic()
        if now < self._next_try:
            return False
        self._next_try = now + self._rest  # also where the one that tries is cancelled
        return True

    def succeeded(self) -> bool:
        """True where it had failed before."""
        recovered = not self._closed
        self._closed = True
        return recovered

    def failed(self) -> bool:
        """True where it worked before."""
        broke = self._closed
        self._closed = False
        self._next_try = self._clock.monotonic() + self._rest
        return broke
