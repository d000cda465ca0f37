"""Time and ids, passed in where tests care."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

_ALPHABET = "23456789abcdefghjkmnpqrstvwxyz"  # no look-alikes


class Clock(Protocol):
    def now(self) -> datetime:
        """Wall time, UTC-aware."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back: for durations."""
        ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


IdMaker = Callable[[], str]


def random_id() -> str:
    """12 characters of 30: about 59 bits; matches `[a-z0-9-]{1,63}`."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(12))
