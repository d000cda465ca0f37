"""Pieces of outputs and results of one stream, in order, for fast readers and slow ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from promptlooper.adapter.batches import ItemStreams
from promptlooper.adapter.ready import Batch, Ready
from promptlooper.completion import OnDelta
from promptlooper.errors import DomainError, ProviderRejected
from promptlooper.wire.limits import BATCH_BYTES, BATCH_ITEMS


@dataclass(frozen=True)
class Item:
    item_id: int


@dataclass(frozen=True)
class Result:
    item_id: int
    text: str

    def ByteSize(self) -> int:
        return len(self.text)


Message = tuple[list[int], list[Item]]
Work = Callable[[Item, OnDelta], Awaitable[Result]]


class Stream:
    """One stream: `send` what its client sends, `read` what it gets."""

    def __init__(self, answer: Work) -> None:
        self.streams: ItemStreams[Item, Result] = ItemStreams(answer, lambda n, error: Result(n, error.reason))
        self._sent: asyncio.Queue[Message | None] = asyncio.Queue()
        self.batches: AsyncGenerator[Batch[Result], None] = self.streams.batches(self._messages())

    async def _messages(self) -> AsyncIterator[Message]:
        while (message := await self._sent.get()) is not None:
            yield message

    def send(self, *item_ids: int, cancelled: tuple[int, ...] = ()) -> None:
        self._sent.put_nowait((list(cancelled), [Item(item_id) for item_id in item_ids]))

    def close(self) -> None:
        self._sent.put_nowait(None)

    async def read(self) -> tuple[list[tuple[int, str]], list[Result]]:
        async with asyncio.timeout(10):
            batch = await anext(self.batches)
        return batch.deltas, batch.results

    async def rest(self) -> list[Batch[Result]]:
        async with asyncio.timeout(10):
            return [batch async for batch in self.batches]


class Told:
    """Tells what it is given, and answers when it may."""

    def __init__(self, *pieces: str, fails: DomainError | None = None) -> None:
        self.pieces, self.fails = pieces, fails
        self.more: dict[int, OnDelta] = {}
        self.go, self.stopped = asyncio.Event(), asyncio.Event()

    async def __call__(self, item: Item, tell: OnDelta) -> Result:
        self.more[item.item_id] = tell
        for piece in self.pieces:
            tell(piece)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.stopped.set()
            raise
        if self.fails is not None:
            raise self.fails
        return Result(item.item_id, "all")


async def test_pieces_that_are_ready_together_come_as_one_and_before_the_result() -> None:
    told = Told("a", "b")
    stream = Stream(told)
    stream.send(1, 2)
    assert await stream.read() == ([(1, "ab"), (2, "ab")], [])
    told.more[2]("c")
    told.more[2]("d")
    told.go.set()
    stream.close()
    batches = await stream.rest()
    assert [delta for batch in batches for delta in batch.deltas] == [(2, "cd")]
    assert batches[0].deltas
    assert [result for batch in batches for result in batch.results] == [Result(1, "all"), Result(2, "all")]


async def test_pieces_come_before_an_error_too() -> None:
    told = Told("a", fails=ProviderRejected("no"))
    told.go.set()
    stream = Stream(told)
    stream.send(1)
    stream.close()
    assert await stream.rest() == [Batch([(1, "a")], [Result(1, "PROVIDER_REJECTED")])]


async def test_what_a_slow_reader_has_not_taken_is_one_text() -> None:
    told = Told("a")
    stream = Stream(told)
    stream.send(1)
    assert await stream.read() == ([(1, "a")], [])
    for _ in range(10_000):
        told.more[1]("é")
    told.go.set()
    stream.close()
    batches = await stream.rest()
    assert [delta for batch in batches for delta in batch.deltas] == [(1, "é" * 10_000)]


async def test_a_cancelled_item_is_stopped_and_the_others_go_on() -> None:
    told = Told("a")
    stream = Stream(told)
    stream.send(1, 2)
    assert await stream.read() == ([(1, "a"), (2, "a")], [])
    stream.send(cancelled=(1,))
    told.more[2]("b")
    assert await stream.read() == ([(2, "b")], [])
    await told.stopped.wait()
    told.go.set()
    stream.close()
    assert await stream.rest() == [Batch([], [Result(2, "all")])]


async def test_leaving_stops_what_is_told() -> None:
    told = Told("a")
    stream = Stream(told)
    stream.send(1)
    await stream.read()
    await stream.batches.aclose()
    assert told.stopped.is_set()


async def test_a_draining_stream_tells_the_rest_of_what_it_has() -> None:
    told = Told("a")
    stream = Stream(told)
    stream.send(1)
    await stream.read()
    stream.streams.drain()
    stream.send(2)
    assert await stream.read() == ([], [Result(2, "DRAINING")])
    told.more[1]("b")
    told.go.set()
    batches = await stream.rest()
    assert [delta for batch in batches for delta in batch.deltas] == [(1, "b")]
    assert batches[-1].results == [Result(1, "all")]


@pytest.mark.parametrize("character", ["a", "é", "😀"])
def test_no_message_is_too_large_and_nothing_is_lost(character: str) -> None:
    ready: Ready[Result] = Ready()
    whole = character * (BATCH_BYTES + 10)
    ready.tell(1, whole)
    ready.tell(2, "small")
    ready.put(Result(1, "all"))
    texts, results = {1: "", 2: ""}, []
    while ready:
        batch = ready.next_batch()
        assert sum(len(text.encode()) for _, text in batch.deltas) <= BATCH_BYTES
        for item_id, text in batch.deltas:
            texts[item_id] += text
        results += batch.results
        assert not results or texts[1] == whole
    assert (texts, results) == ({1: whole, 2: "small"}, [Result(1, "all")])


def test_a_message_has_no_more_entries_than_are_allowed() -> None:
    ready: Ready[Result] = Ready()
    for item_id in range(BATCH_ITEMS):
        ready.tell(item_id, "a")
        ready.put(Result(item_id, ""))
    sizes = []
    while ready:
        batch = ready.next_batch()
        sizes.append(len(batch.deltas) + len(batch.results))
    assert sizes == [BATCH_ITEMS, BATCH_ITEMS]


def test_half_of_a_surrogate_pair_is_its_items_own_fault() -> None:
    ready: Ready[Result] = Ready()
    with pytest.raises(UnicodeEncodeError):
        ready.tell(1, "\ud800")
    assert ready.next_batch() == Batch()
