"""Many questions over one stream: a task per item, and answers in batches as they are ready, also piece by piece. Knows
no messages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from functools import partial
from typing import Generic, Protocol, TypeAlias, TypeVar

from promptlooper.adapter.ready import Batch, Ready
from promptlooper.completion import Completion, CompletionGateway, CompletionRequest, OnDelta
from promptlooper.errors import DeadlineExceeded, DomainError, Draining, InvalidArgument
from promptlooper.wire.limits import Measured

MAX_IN_FLIGHT = 4_096  # items of one stream; more stay unread, which the sender's flow control notices
GRACE = 0.5  # seconds after an item's timeout: the core knows better what took so long, and says it first

_log = logging.getLogger(__name__)


class Item(Protocol):
    @property
    def item_id(self) -> int: ...


ItemT = TypeVar("ItemT", bound=Item)
ResultT = TypeVar("ResultT", bound=Measured)
_Message: TypeAlias = tuple[Iterable[int], Iterable[ItemT]]  # items that are not wanted any more, and new ones
_Answer: TypeAlias = Callable[[ItemT, OnDelta], Awaitable[ResultT]]


async def completed(
    core: CompletionGateway, request: CompletionRequest, on_delta: OnDelta | None, grace: float
) -> Completion:
    """The core's answer; DeadlineExceeded where it gives none `grace` seconds after the request's own timeout, with
    one attempt, as nobody knows what was sent and may be billed."""
    scope = asyncio.timeout(request.timeout + grace)
    try:
        async with scope:
            return await core.complete(request, on_delta)
    except TimeoutError:
        if not scope.expired():
            raise
        raise DeadlineExceeded("no answer in time; allow more time", attempts=1) from None


class ItemStreams(Generic[ItemT, ResultT]):
    """All streams of a server. `answer` makes an item's result and may tell pieces of its output before; `failed` makes
    that of an error which it raised."""

    def __init__(
        self,
        answer: _Answer[ItemT, ResultT],
        failed: Callable[[int, DomainError], ResultT],
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._answer = answer
        self._failed = failed
        self._max_in_flight = max_in_flight
        self._open: set[_ItemStream[ItemT, ResultT]] = set()
        self._draining = False

    def drain(self) -> None:
        """Streams take no more items, and end when those they have are answered."""
        self._draining = True
        for stream in self._open:
            stream.drain()

    async def batches(self, messages: AsyncIterator[_Message[ItemT]]) -> AsyncGenerator[Batch[ResultT], None]:
        """The results of one stream's items, and pieces of their outputs. Leaving it cancels what still runs."""
        stream = _ItemStream(self._answer, self._failed, self._max_in_flight)
        if self._draining:
            stream.drain()
        self._open.add(stream)
        try:
            async with aclosing(stream.batches(messages)) as batches:
                async for batch in batches:
                    yield batch
        finally:
            self._open.discard(stream)


class _ItemStream(Generic[ItemT, ResultT]):
    """One reader, a task per item, and one writer that sends all that is ready."""

    def __init__(
        self,
        answer: _Answer[ItemT, ResultT],
        failed: Callable[[int, DomainError], ResultT],
        max_in_flight: int,
    ) -> None:
        self._answer = answer
        self._failed = failed
        self._max_in_flight = max_in_flight
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ready: Ready[ResultT] = Ready()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._draining = False

    def drain(self) -> None:
        self._draining = True
        self._wake.set()

    async def batches(self, messages: AsyncIterator[_Message[ItemT]]) -> AsyncGenerator[Batch[ResultT], None]:
        reader = asyncio.create_task(self._read(messages))
        reader.add_done_callback(lambda _: self._wake.set())
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._ready:
                    batch = self._ready.next_batch()
                    self._room.set()
                    yield batch
                if reader.done():
                    reader.result()  # raises what is wrong with the stream as a whole
                if (reader.done() or self._draining) and not self._tasks and not self._ready:
                    return
        finally:
            unfinished = [reader, *self._tasks.values()]
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def _read(self, messages: AsyncIterator[_Message[ItemT]]) -> None:
        async for cancelled, items in messages:
            for item_id in cancelled:
                if (task := self._tasks.get(item_id)) is not None:
                    task.cancel()
            for item in items:
                while len(self._tasks) + len(self._ready) >= self._max_in_flight:
                    self._room.clear()
                    await self._room.wait()
                self._start(item)

    def _start(self, item: ItemT) -> None:
        item_id = item.item_id
        if self._draining:
            self._put(self._failed(item_id, Draining("this Adapter is shutting down; ask again, another answers")))
            return
        if item_id in self._tasks:
            raise InvalidArgument(f"item_id {item_id} has no answer yet; take another", field="item_id")
        task = asyncio.create_task(self._run(item))
        self._tasks[item_id] = task
        task.add_done_callback(partial(self._finished, item_id))

    def _finished(self, item_id: int, task: asyncio.Task[None]) -> None:
        del self._tasks[item_id]
        self._room.set()
        if not self._tasks:
            self._wake.set()  # perhaps the last one

    async def _run(self, item: ItemT) -> None:
        try:
            result = await self._answer(item, partial(self._tell, item.item_id))
        except DomainError as error:
            result = self._failed(item.item_id, error)
        except Exception:
            _log.exception("item %d failed", item.item_id)
            result = self._failed(item.item_id, DomainError("internal error"))
        self._put(result)

    def _put(self, result: ResultT) -> None:
        self._ready.put(result)
        self._wake.set()

    def _tell(self, item_id: int, piece: str) -> None:
        self._ready.tell(item_id, piece)
        self._wake.set()
