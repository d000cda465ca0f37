"""Calls that are ready together travel together: a hop costs the same for one item as for many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
AnswerT = TypeVar("AnswerT")


class TickBatcher(Generic[ItemT, AnswerT]):
    """Sends what is asked for in one tick of the event loop in one call.

    The first item schedules a batch, and those that come until the loop has gone round join it. While `max_in_flight`
    batches are on their way the rest gathers. With `gather` seconds a batch waits so long for others, where that costs
    less than a hop of its own; else nothing waits for a clock. `send` gets the items and returns, in their
    order, an answer or the exception to raise for each; what it raises itself is raised for all its items. Items whose
    waiter was cancelled are not sent. `size_of` says an item's bytes; one above `max_bytes` travels alone.
    """

    def __init__(
        self,
        send: Callable[[list[ItemT]], Awaitable[Sequence[AnswerT | Exception]]],
        *,
        max_items: int = 256,
        max_bytes: int = 1024 * 1024,
        size_of: Callable[[ItemT], int] | None = None,
        max_in_flight: int = 2,
        gather: float = 0.0,
    ) -> None:
        self._send = send
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._max_in_flight = max_in_flight
        self._gather = gather
        self._waiting: deque[tuple[ItemT, asyncio.Future[AnswerT]]] = deque()
        self._sending: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._closed = False
        self._nobodys = Context()  # a batch is not its first item's work

    def __call__(self, item: ItemT) -> asyncio.Future[AnswerT]:
        """The item's answer, to be awaited. Raises RuntimeError after aclose()."""
        if self._closed:
            raise RuntimeError("this batcher is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[AnswerT] = loop.create_future()
        self._waiting.append((item, future))
        if not self._scheduled and len(self._sending) < self._max_in_flight:
            self._scheduled = True
            if self._gather:
                loop.call_later(self._gather, self._dispatch, context=self._nobodys)
            else:
                loop.call_soon(self._dispatch, context=self._nobodys)
        return future

    async def aclose(self) -> None:
        """Takes no more items and waits until those it has are answered."""
        self._closed = True
        self._dispatch()
        while self._sending:
            await asyncio.wait(set(self._sending))

    async def cancel(self) -> None:
        """Takes no more items and gives up those it has."""
        self._closed = True
        for _, future in self._waiting:
            future.cancel()
        for task in self._sending:
            task.cancel()
        while self._sending:
            await asyncio.wait(set(self._sending))

    def _dispatch(self) -> None:
        self._scheduled = False
        while len(self._sending) < self._max_in_flight and (batch := self._next_batch()):
            task = asyncio.get_running_loop().create_task(self._deliver(batch))
            self._sending.add(task)
            task.add_done_callback(self._delivered)

    def _next_batch(self) -> list[tuple[ItemT, asyncio.Future[AnswerT]]]:
        batch: list[tuple[ItemT, asyncio.Future[AnswerT]]] = []
        room = self._max_bytes
        while self._waiting and len(batch) < self._max_items:
            item, future = self._waiting[0]
            if not future.done():
                room -= self._size_of(item) if self._size_of else 0
                if room < 0 and batch:
                    break
                batch.append((item, future))
            self._waiting.popleft()
        return batch

    async def _deliver(self, batch: list[tuple[ItemT, asyncio.Future[AnswerT]]]) -> None:
        try:
            answers = await self._send([item for item, _ in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(batch)} items were sent and {len(answers)} answers came back")
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():  # its waiter was cancelled meanwhile
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if self._waiting:
            self._dispatch()
