"""Work that tells of its progress by calls, as a stream of what it tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

TextT = TypeVar("TextT")
ResultT = TypeVar("ResultT")
LONGEST = 256 * 1024  # characters of a text that is told in one message: as UTF-8 at most 1 MiB


async def told_by(
    work: Callable[[Callable[[TextT], None]], Awaitable[ResultT]],
) -> AsyncGenerator[list[TextT | ResultT], None]:
    """What `work` tells to its argument, as much at a time as is there, and at the end its result. Leaving it cancels
    the work. Who reads slowly holds what was told meanwhile in memory."""
    told: list[TextT | ResultT] = []
    news = asyncio.Event()

    def tell(piece: TextT) -> None:
        told.append(piece)
        news.set()

    task = asyncio.ensure_future(work(tell))
    task.add_done_callback(lambda _: news.set())
    try:
        while not task.done() or told:
            await news.wait()
            news.clear()
            if told:
                ready, told = told, []
                yield ready
        yield [task.result()]
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def parts_of(text: str) -> list[str]:
    """The text in pieces that a message takes."""
    return [text[start : start + LONGEST] for start in range(0, len(text), LONGEST)]
