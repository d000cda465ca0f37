"""A loop in a thread of its own: who waits, who is cancelled, and what is left."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from promptlooper.client.loop_thread import LoopThread


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


class Stream:
    """Counts without end; says when it has begun and when it is closed."""

    def __init__(self) -> None:
        self.begun, self.closed = threading.Event(), threading.Event()
        self.given = 0

    async def items(self) -> AsyncGenerator[int, None]:
        self.begun.set()
        try:
            while True:
                yield self.given
                self.given += 1
        finally:
            self.closed.set()


async def wait_forever(cancelled: threading.Event, begun: threading.Event) -> None:
    begun.set()
    try:
        await asyncio.Event().wait()
    finally:
        cancelled.set()


async def square(number: int) -> int:
    await asyncio.sleep(0)
    return number * number


async def fail() -> None:
    raise KeyError("lost")


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "promptlooper-client"]


def test_calls_of_many_threads_get_their_answers(thread: LoopThread) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: thread.call(square(n)), range(200))) == [n * n for n in range(200)]
    with pytest.raises(KeyError, match="lost"):
        thread.call(fail())


async def test_it_works_inside_of_a_running_loop(thread: LoopThread) -> None:
    assert thread.call(square(3)) == 9
    assert next(thread.iterate(Stream().items)) == 0


def test_a_stream_is_opened_by_the_first_item_and_closed_with_its_iterator(thread: LoopThread) -> None:
    stream = Stream()
    iterator = thread.iterate(stream.items)
    thread.call(square(1))
    assert not stream.begun.is_set()
    assert [next(iterator) for _ in range(300)] == list(range(300))
    iterator.close()  # type: ignore[attr-defined]
    assert stream.closed.wait(10)


def test_a_forgotten_iterator_ends_its_stream(thread: LoopThread) -> None:
    stream = Stream()
    for number in thread.iterate(stream.items):
        if number == 5:
            break
    gc.collect()
    assert stream.closed.wait(10)


def test_a_stream_does_not_run_away_from_its_reader(thread: LoopThread) -> None:
    stream = Stream()
    iterator = thread.iterate(stream.items)
    assert next(iterator) == 0
    for _ in range(500):
        thread.call(square(1))
    assert stream.given < 100


def test_the_error_of_a_stream_comes_after_its_items(thread: LoopThread) -> None:
    async def two_items() -> AsyncGenerator[int, None]:
        yield 1
        yield 2
        raise KeyError("lost")

    iterator = thread.iterate(two_items)
    assert [next(iterator), next(iterator)] == [1, 2]
    with pytest.raises(KeyError, match="lost"):
        next(iterator)


def test_closing_cancels_what_other_threads_wait_for_and_leaves_no_thread() -> None:
    thread, cancelled, begun = LoopThread(), threading.Event(), threading.Event()
    stream = Stream()
    iterator = thread.iterate(stream.items)
    next(iterator)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: thread.call(wait_forever(cancelled, begun)))
        assert begun.wait(10)
        thread.close()
        with pytest.raises(RuntimeError, match="is closed: make a new one"):
            waiting.result()
    assert cancelled.is_set()
    assert stream.closed.is_set()
    with pytest.raises(RuntimeError, match="is closed"):
        list(iterator)
    with pytest.raises(RuntimeError, match="is closed"):
        thread.call(square(1))
    thread.close()
    assert own_threads() == []


def test_a_loop_that_was_never_used_has_no_thread() -> None:
    thread = LoopThread()
    assert own_threads() == []
    thread.close()


def test_a_forked_process_is_told_to_make_its_own(thread: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    thread.call(square(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(RuntimeError, match="before the fork"):
            thread.call(square(1))
    assert thread.call(square(2)) == 4
