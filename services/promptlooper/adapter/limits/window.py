"""Requests and tokens per minute: a sliding window that no burst exceeds, passed through evenly. Decides only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

PERIOD = 60.0  # seconds
# Seconds' worth that may go at once: providers enforce a minute's limit in shorter spans, too. Of tokens far more are
# reserved than will be used.
BURSTS = (2.0, 30.0)
_SLACK = 0.25  # seconds by which one request may travel longer than another

Pair: TypeAlias = list[float]
"""Requests and tokens."""
Used: TypeAlias = dict[int, Pair]
"""What was used, by the second in which it was; seconds are whole, so that those of all replicas can be added up."""

KINDS = (0, 1)


def forget_old(used: Used, now: float) -> None:
    for second in [second for second in used if _leaves(second) <= now]:
        del used[second]


def used_in(window: Mapping[int, Pair], kind: int) -> float:
    return sum(pair[kind] for pair in window.values())


def wait_for(need: float, room: float, windows: Iterable[Mapping[int, Pair]], kind: int, now: float) -> float:
    """Seconds until enough of what was used has left the window for `need`, where there is `room` now."""
    pairs = sorted((second, pair[kind]) for window in windows for second, pair in window.items())
    for second, amount in pairs:
        room += amount
        if room >= need:
            return max(0.0, _leaves(second) - now)
    return PERIOD


def _leaves(second: int) -> float:
    return second + 1 + PERIOD + _SLACK


def evenly(kind: int, free_at: float, now: float, per_minute: float) -> float:
    """How much may go now, where everything granted so far has had its time by `free_at`. At 0 one may go, whose
    time is then owed; below, none."""
    return max(0.0, now - max(free_at, now - BURSTS[kind])) * per_minute / PERIOD if free_at <= now else -1.0


def free_after(kind: int, free_at: float, now: float, amount: float, per_minute: float) -> float:
    return max(free_at, now - BURSTS[kind]) + amount * PERIOD / per_minute
