"""The Adapter's RPCs: convert in, ask the core, convert out."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import grpc

from promptlooper.completion import CompletionGateway
from promptlooper.errors import DeadlineExceeded, DomainError, Draining, InvalidArgument, TooLarge
from promptlooper.rpc.deadlines import is_deadline
from promptlooper.v1 import adapter_service_pb2 as pb
from promptlooper.v1.adapter_service_pb2_grpc import AdapterServiceServicer, add_AdapterServiceServicer_to_server
from promptlooper.wire.completion import check_to_pb, completion_to_pb, error_to_pb, model_to_pb, request_from_pb
from promptlooper.wire.limits import BATCH_BYTES, BATCH_ITEMS, MAX_MESSAGE, refuse_too_many

SERVICE = pb.DESCRIPTOR.services_by_name["AdapterService"]
SERVICE_NAME = SERVICE.full_name

MAX_IN_FLIGHT = 4_096  # items of one stream; more stay unread, which the sender's flow control notices
GRACE = 0.5  # seconds after an item's timeout: the core knows better what took so long, and says it first

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_Requests: TypeAlias = AsyncIterator[pb.CompleteManyRequest]

_log = logging.getLogger(__name__)


def register(server: grpc.aio.Server, core: CompletionGateway) -> None:
    AdapterServicer(core).register(server)


class AdapterServicer(AdapterServiceServicer):
    """`drain` is for the server's `on_drain`: without it open streams hold the server for its whole grace."""

    def __init__(self, core: CompletionGateway, *, max_in_flight: int = MAX_IN_FLIGHT, grace: float = GRACE) -> None:
        self._core = core
        self._max_in_flight = max_in_flight
        self._grace = grace
        self._streams: set[_ItemStream] = set()
        self._draining = False

    def register(self, server: grpc.aio.Server) -> None:
        add_AdapterServiceServicer_to_server(self, server)

    def drain(self) -> None:
        """Streams take no more items, and end when those they have are answered."""
        self._draining = True
        for stream in self._streams:
            stream.drain()

    async def Complete(self, request: pb.CompleteRequest, context: Context) -> pb.CompleteResponse:
        question = request_from_pb(request.request)
        left = context.time_remaining()
        if left is not None and is_deadline(left):
            question = replace(question, timeout=max(0.001, min(question.timeout, left)))
        return pb.CompleteResponse(completion=completion_to_pb(await self._core.complete(question)))

    async def CompleteMany(
        self, request_iterator: _Requests, context: Context
    ) -> AsyncIterator[pb.CompleteManyResponse]:
        stream = _ItemStream(self._core, self._max_in_flight, self._grace)
        if self._draining:
            stream.drain()
        self._streams.add(stream)
        try:
            async with aclosing(stream.responses(request_iterator)) as responses:
                async for response in responses:
                    yield response
        finally:
            self._streams.discard(stream)

    async def CheckModels(self, request: pb.CheckModelsRequest, context: Context) -> pb.CheckModelsResponse:
        refuse_too_many(request.models, "models")
        checks = await self._core.check_models(list(request.models))
        return pb.CheckModelsResponse(checks=[check_to_pb(check) for check in checks])

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[model_to_pb(model) for model in await self._core.list_models()])


class _ItemStream:
    """One CompleteMany call: a task per item, one reader, and one writer that sends all that is ready."""

    def __init__(self, core: CompletionGateway, max_in_flight: int, grace: float) -> None:
        self._core = core
        self._max_in_flight = max_in_flight
        self._grace = grace
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ready: deque[tuple[pb.CompletionItemResult, int]] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._draining = False

    def drain(self) -> None:
        self._draining = True
        self._wake.set()

    async def responses(self, requests: _Requests) -> AsyncGenerator[pb.CompleteManyResponse, None]:
        reader = asyncio.create_task(self._read(requests))
        reader.add_done_callback(lambda _: self._wake.set())
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._ready:
                    yield self._next_response()
                if reader.done():
                    reader.result()  # raises what is wrong with the stream as a whole
                if (reader.done() or self._draining) and not self._tasks and not self._ready:
                    return
        finally:
            unfinished = [reader, *self._tasks.values()]
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def _read(self, requests: _Requests) -> None:
        async for message in requests:
            for item_id in message.cancelled_item_ids:
                if (task := self._tasks.get(item_id)) is not None:
                    task.cancel()
            for item in message.items:
                while len(self._tasks) + len(self._ready) >= self._max_in_flight:
                    self._room.clear()
                    await self._room.wait()
                self._start(item)

    def _start(self, item: pb.CompletionItem) -> None:
        item_id = item.item_id
        if self._draining:
            self._answer(_failed(item_id, Draining("this Adapter is shutting down: ask again, another answers")))
            return
        if item_id in self._tasks:
            raise InvalidArgument(f"item_id {item_id} has no answer yet: take another", field="item_id")
        task = asyncio.create_task(self._complete(item))
        self._tasks[item_id] = task
        task.add_done_callback(partial(self._finished, item_id))

    def _finished(self, item_id: int, task: asyncio.Task[None]) -> None:
        del self._tasks[item_id]
        self._room.set()
        if not self._tasks:
            self._wake.set()  # perhaps the last one

    async def _complete(self, item: pb.CompletionItem) -> None:
        scope: asyncio.Timeout | None = None
        try:
            request = request_from_pb(item.request)
            async with asyncio.timeout(request.timeout + self._grace) as scope:
                completion = await self._core.complete(request)
            result = pb.CompletionItemResult(item_id=item.item_id, completion=completion_to_pb(completion))
            if (size := result.ByteSize()) > MAX_MESSAGE:
                raise TooLarge(f"the answer has {size} bytes, and at most {MAX_MESSAGE} can be sent: ask for less")
        except DomainError as error:
            result = _failed(item.item_id, error)
        except Exception as error:
            if isinstance(error, TimeoutError) and scope is not None and scope.expired():
                result = _failed(item.item_id, DeadlineExceeded("no answer in time: allow more time"))
            else:
                _log.exception("an item of %s failed", item.request.model)
                result = _failed(item.item_id, DomainError("internal error"))
        self._answer(result)

    def _answer(self, result: pb.CompletionItemResult) -> None:
        self._ready.append((result, result.ByteSize()))
        self._wake.set()

    def _next_response(self) -> pb.CompleteManyResponse:
        """What is ready, as much as one message takes."""
        results: list[pb.CompletionItemResult] = []
        room = BATCH_BYTES
        while self._ready and len(results) < BATCH_ITEMS:
            result, size = self._ready[0]
            if results and size > room:
                break
            results.append(result)
            room -= size
            self._ready.popleft()
        self._room.set()
        return pb.CompleteManyResponse(results=results)


def _failed(item_id: int, error: DomainError) -> pb.CompletionItemResult:
    return pb.CompletionItemResult(item_id=item_id, error=error_to_pb(error))
