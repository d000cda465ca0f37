"""Who may ask a provider now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol


class Limiter(Protocol):
    """Hands out the right to make one attempt. A slot is not held while a retry waits."""

    def slot(self, provider: str, model: str) -> AbstractAsyncContextManager[None]:
        """Waits for its turn when entered; the caller's deadline ends the wait."""
        ...


class LocalLimiter:
    """A fixed number of attempts at once per provider, within this process."""

    def __init__(self, max_concurrency: Mapping[str, int | None]) -> None:
        self._slots = {name: asyncio.Semaphore(n) for name, n in max_concurrency.items() if n is not None}
        self._unlimited: nullcontext[None] = nullcontext()

    def slot(self, provider: str, model: str) -> AbstractAsyncContextManager[None]:
        return self._slots.get(provider, self._unlimited)
