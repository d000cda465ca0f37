"""Counts of one server's calls."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from promptlooper.counting import CALLS, Histogram


@dataclass(slots=True)
class Calls:
    """Methods are full names, as in `/promptlooper.v1.RunnerService/GetRun`; only those that are served are counted."""

    handled: Counter[tuple[str, str]] = field(default_factory=Counter)  # by method and status code
    in_flight: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, Histogram] = field(default_factory=dict)  # of unary methods; a stream lasts while it is read
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)  # before they were handled: of callers unknown
    draining: bool = False

    def began(self, method: str) -> None:
        self.in_flight[method] += 1

    def ended(self, method: str, code: str, seconds: float | None = None) -> None:
        self.in_flight[method] -= 1
        self.handled[method, code] += 1
        if seconds is not None:
            if (histogram := self.seconds.get(method)) is None:
                histogram = self.seconds[method] = Histogram(CALLS)
            histogram.add(seconds)
