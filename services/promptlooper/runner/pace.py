"""How often an experiment takes a turn: a turn costs about the same for 1 outcome as for 50."""

from __future__ import annotations

SHORTEST, LONGEST = 0.025, 0.1  # seconds between the beginnings of two turns
LATENCY_SHARE = 0.2  # where answers take long, an outcome may wait up to a fifth of that
NEWEST = 0.1  # how much the newest answer counts in the mean


class Pace:
    """When the next turn may begin, by the monotonic clock."""

    def __init__(self) -> None:
        self._latency = 0.0  # seconds that answers took lately
        self._earliest = 0.0

    def answered(self, latency: float) -> None:
        self._latency += NEWEST * (latency - self._latency)

    def turn_begins(self, now: float) -> None:
        self._earliest = now + min(max(SHORTEST, LATENCY_SHARE * self._latency), LONGEST)

    def pause(self, now: float) -> float:
        """Seconds to wait; not above 0 where a turn may begin now."""
        return self._earliest - now
