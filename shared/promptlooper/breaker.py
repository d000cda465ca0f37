"""Stops asking what does not answer, so that its callers do not wait for it one after the other."""

from __future__ import annotations

from enum import Enum

from promptlooper.clock import Clock


class BreakerState(Enum):
    CLOSED = "closed"  # calls go through
    OPEN = "open"  # calls are refused at once
    HALF_OPEN = "half_open"  # one call is under way whose outcome decides, or the next one will be


class Breaker:
    """After `failures` in a row `admits` says no for `rest` seconds; then it lets one try through, whose outcome
    decides."""

    def __init__(self, clock: Clock, rest: float = 1.0, *, failures: int = 1) -> None:
        self._clock = clock
        self._rest = rest
        self._bound = failures
        self._failures = 0  # since the last success
        self._next_try = 0.0  # monotonic
        self._trying = False

    @property
    def is_closed(self) -> bool:
        return self._failures < self._bound

    @property
    def state(self) -> BreakerState:
        if self.is_closed:
            return BreakerState.CLOSED
        if self._trying or self._clock.monotonic() >= self._next_try:
            return BreakerState.HALF_OPEN
        return BreakerState.OPEN

    def admits(self) -> bool:
        if self.is_closed:
            return True
        now = self._clock.monotonic()
        if now < self._next_try:
            return False
        self._next_try = now + self._rest  # also where the one that tries is cancelled
        self._trying = True
        return True

    def succeeded(self) -> bool:
        """True where it was shut before."""
        recovered = not self.is_closed
        self._failures, self._trying = 0, False
        return recovered

    def failed(self) -> bool:
        """True where this shut it."""
        broke = self._failures + 1 == self._bound
        self._failures += 1
        self._trying = False
        if not self.is_closed:
            self._next_try = self._clock.monotonic() + self._rest
        return broke
