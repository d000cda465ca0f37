"""Work that tells of its progress by calls, as a stream of what it tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

TextT = TypeVar("TextT")
ResultT = TypeVar("ResultT")


async def pieces_of(
    work: Callable[[Callable[[TextT], None]], Awaitable[ResultT]],
) -> AsyncGenerator[TextT | ResultT, None]:
    """What `work` tells to its argument, and at the end its result. Leaving it cancels the work. Who reads slowly holds
    what was told meanwhile in memory."""
    told: asyncio.Queue[TextT | None] = asyncio.Queue()  # None: the work has ended
    task = asyncio.ensure_future(work(told.put_nowait))
    task.add_done_callback(lambda _: told.put_nowait(None))
    try:
        while (piece := await told.get()) is not None:
            yield piece
        yield task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
