"""Work as a stream of what it tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import pytest

from promptlooper.streaming import LONGEST, parts_of, told_by

Tell = Callable[[str], None]


async def test_what_is_told_together_comes_together_and_the_result_alone() -> None:
    go = asyncio.Event()

    async def work(tell: Tell) -> int:
        tell("a")
        tell("b")
        await go.wait()
        tell("c")
        return 7

    heard: list[list[str | int]] = []
    async for ready in told_by(work):
        heard.append(ready)
        go.set()
    assert heard == [["a", "b"], ["c"], [7]]


async def test_what_was_told_before_an_error_is_heard_first() -> None:
    async def work(tell: Tell) -> None:
        tell("a")
        raise LookupError("no")

    stream = told_by(work)
    assert await anext(stream) == ["a"]
    with pytest.raises(LookupError, match="no"):
        await anext(stream)


async def test_leaving_it_stops_the_work() -> None:
    stopped = asyncio.Event()

    async def work(tell: Tell) -> None:
        tell("a")
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with aclosing(told_by(work)) as stream:
        assert await anext(stream) == ["a"]
    assert stopped.is_set()


def test_a_long_text_is_cut_into_what_a_message_takes() -> None:
    text = "😀" * (LONGEST + 1)
    assert parts_of(text) == [text[:-1], "😀"]
    assert parts_of("") == []
