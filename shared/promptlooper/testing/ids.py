"""Ids that tests can know beforehand."""

from __future__ import annotations

import itertools


class SequentialIds:
    """An id maker: `id-1`, `id-2`, …"""

    def __init__(self, prefix: str = "id") -> None:
        self._prefix = prefix
        self._numbers = itertools.count(1)

    def __call__(self) -> str:
        return f"{self._prefix}-{next(self._numbers)}"
