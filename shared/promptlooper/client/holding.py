"""A context that is kept open until someone closes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

T = TypeVar("T")


class Held(Generic[T]):
    """Opens when it is first asked for, and closes when it is told to: both in one task of its own, whoever asks, as
    contexts want it that hold background work."""

    def __init__(self, open: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._open = open
        self._opened: asyncio.Future[T] | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def get(self) -> T:
        """Raises what opening raises; then the next call tries again."""
        if self._closing.is_set():
            raise RuntimeError("this client is closed: make a new one")
        if self._opened is None:
            self._opened = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._hold(self._opened))
        return await asyncio.shield(self._opened)

    async def _hold(self, opened: asyncio.Future[T]) -> None:
        try:
            async with self._open() as value:
                opened.set_result(value)
                await self._closing.wait()
        except BaseException as error:
            if opened.done() or not isinstance(error, Exception):
                opened.cancel()
                raise
            opened.set_exception(error)
            opened.exception()  # whoever asked may have gone
            self._opened = None

    async def close(self) -> None:
        self._closing.set()
        if self._task is not None:
            await asyncio.shield(self._task)
