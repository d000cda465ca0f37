"""One CompleteMany call: questions with ids go out in batches, answers come back in any order, also piece by piece."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeAlias

import grpc

from promptlooper.completion import Completion, OnDelta
from promptlooper.errors import DeadlineExceeded, DomainError, Draining
from promptlooper.rpc.client import domain_errors
from promptlooper.v1 import adapter_service_pb2 as pb
from promptlooper.wire.completion import completion_from_pb, error_from_pb
from promptlooper.wire.limits import BATCH_BYTES, BATCH_ITEMS

_CLOSED = "this process closed its connection to the Adapter"

_log = logging.getLogger(__name__)
_Call: TypeAlias = grpc.aio.StreamStreamCall[pb.CompleteManyRequest, pb.CompleteManyResponse]


class Lost(Exception):
    """The stream ended without an answer, or the Adapter is leaving: another replica may be asked at once. `sent`: the
    Adapter may have had the question, and asked the provider."""

    def __init__(self, message: str, *, sent: bool = False) -> None:
        super().__init__(message)
        self.sent = sent


class Heard:
    """What has come of an answer so far: `told` once there was a piece."""

    def __init__(self, on_delta: OnDelta) -> None:
        self._on_delta = on_delta
        self.told = False

    def __call__(self, piece: str) -> None:
        self.told = True
        self._on_delta(piece)


class CompletionStream:
    """Takes questions until it is retired, and ends with its last answer, or when it breaks. `len()` is the number of
    questions without an answer. Two tasks serve the stream, none a single question."""

    def __init__(
        self,
        open_call: Callable[[], Any],
        address: str,
        retire_at: float,
        on_end: Callable[[CompletionStream], None],
    ) -> None:
        self.retire_at = retire_at  # in the loop's time
        self.retired = False
        self._open_call = open_call
        self._address = address
        self._on_end = on_end
        self._pending: dict[int, asyncio.Future[Completion]] = {}
        self._hearing: dict[int, OnDelta] = {}  # of those whose deltas somebody wants
        self._outbox: deque[tuple[pb.CompletionItem, int]] = deque()
        self._last_sent = 0
        self._given_up: list[int] = []
        self._wake = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())

    def __len__(self) -> int:
        return len(self._pending)

    async def ask(
        self, item: pb.CompletionItem, size: int, limit: float, on_delta: OnDelta | None = None
    ) -> Completion:
        """The answer to one question, or Lost. Ids grow from one to the next. After `limit` seconds it is given up. An
        Adapter of 0.1.0 tells `on_delta` nothing."""
        loop = asyncio.get_running_loop()
        item_id = item.item_id
        future: asyncio.Future[Completion] = loop.create_future()
        self._pending[item_id] = future
        if on_delta is not None:
            self._hearing[item_id] = on_delta
        self._outbox.append((item, size))
        self._wake.set()
        timer = loop.call_later(limit, self._expire, item_id, limit)
        try:
            return await future
        except asyncio.CancelledError:
            self._give_up(item_id)
            raise
        finally:
            timer.cancel()

    def retire(self) -> None:
        """Takes no more questions; ends when those it has are answered."""
        self.retired = True
        self._wake.set()

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._end(_CLOSED, None)  # a task that was cancelled before its first step has not done it

    def _expire(self, item_id: int, limit: float) -> None:
        if (future := self._give_up(item_id)) is not None and not future.done():
            message = f"{self._address} gave no answer within {limit:g} s: it may be busy; allow more time"
            attempts = int(item_id <= self._last_sent)  # nobody knows; a call that may have been made may be billed
            future.set_exception(DeadlineExceeded(message, attempts=attempts, address=self._address))

    def _give_up(self, item_id: int) -> asyncio.Future[Completion] | None:
        future = self._settled(item_id)
        if future is not None and item_id <= self._last_sent:
            self._given_up.append(item_id)
            self._wake.set()
        return future

    def _settled(self, item_id: int) -> asyncio.Future[Completion] | None:
        future = self._pending.pop(item_id, None)
        self._hearing.pop(item_id, None)
        if self.retired and not self._pending:
            self._wake.set()
        return future

    async def _run(self) -> None:
        message = _CLOSED
        cause: BaseException | None = None
        call: _Call = self._open_call()
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write(call))
                await self._read(call)
                writer.cancel()
            message = f"the Adapter at {self._address} ended the stream: ask again"
        except* DomainError as broken:
            message, cause = str(broken.exceptions[0]), broken.exceptions[0]
        except* Exception as broken:
            _log.error("the stream to %s failed", self._address, exc_info=broken)
            message = f"the stream to {self._address} failed: this process's log says why"
        finally:
            call.cancel()
            self._end(message, cause)

    def _end(self, message: str, cause: BaseException | None) -> None:
        self.retired = True
        self._on_end(self)
        for item_id, future in self._pending.items():
            if not future.done():
                error = Lost(message, sent=item_id <= self._last_sent)
                error.__cause__ = cause
                future.set_exception(error)
        self._pending.clear()
        self._hearing.clear()

    async def _write(self, call: _Call) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while (message := self._next_message()) is not None:
                    await call.write(message)
                if self.retired and not self._pending:
                    await call.done_writing()
                    return
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call has ended; the reader learns why

    def _next_message(self) -> pb.CompleteManyRequest | None:
        """What is ready, as much as one message takes."""
        given_up, self._given_up = self._given_up, []
        items: list[pb.CompletionItem] = []
        room = BATCH_BYTES
        while self._outbox and len(items) < BATCH_ITEMS:
            item, size = self._outbox[0]
            if item.item_id in self._pending:  # else it was given up before it was sent
                if size > room and items:
                    break
                room -= size
                items.append(item)
                self._last_sent = item.item_id
            self._outbox.popleft()
        return pb.CompleteManyRequest(items=items, cancelled_item_ids=given_up) if items or given_up else None

    async def _read(self, call: _Call) -> None:
        with domain_errors(self._address, "adapter"):
            while isinstance(response := await call.read(), pb.CompleteManyResponse):
                for delta in response.deltas:
                    self._tell(delta)
                for result in response.results:
                    if (future := self._settled(result.item_id)) is not None and not future.done():
                        self._answer(future, result)

    def _tell(self, delta: pb.CompletionDelta) -> None:
        if (on_delta := self._hearing.get(delta.item_id)) is None:
            return
        try:
            on_delta(delta.text)
        except Exception as error:  # its question's alone
            if (future := self._give_up(delta.item_id)) is not None and not future.done():
                future.set_exception(error)

    def _answer(self, future: asyncio.Future[Completion], result: pb.CompletionItemResult) -> None:
        if result.WhichOneof("result") == "completion":
            future.set_result(completion_from_pb(result.completion))
            return
        error = error_from_pb(result.error)
        if isinstance(error, Draining):  # it was not asked
            self.retire()
            future.set_exception(Lost(error.message))
            return
        future.set_exception(error)
