"""The Adapter over gRPC."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from types import TracebackType

import grpc

from promptlooper.clients.completion_stream import CompletionStream
from promptlooper.completion import Completion, CompletionGateway, CompletionRequest, ModelCheck, ModelInfo
from promptlooper.errors import TooLarge
from promptlooper.rpc.client import domain_errors, open_channel
from promptlooper.v1 import adapter_service_pb2 as pb
from promptlooper.v1.adapter_service_pb2_grpc import AdapterServiceStub
from promptlooper.wire.completion import check_from_pb, model_from_pb, request_to_pb
from promptlooper.wire.limits import MAX_MESSAGE

MARGIN = 2.0  # seconds that an answer may take to travel: the Adapter ends what takes longer than its timeout
MAX_AGE = 300.0  # seconds after which a stream gives way to a new one, which may reach another replica


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[AdapterClient]:
    async with (
        open_channel(address, pb.DESCRIPTOR.services_by_name["AdapterService"]) as channel,
        AdapterClient(channel, address) as client,
    ):
        yield client


class AdapterClient(CompletionGateway):
    """Questions travel on one long-lived CompleteMany stream per address of `address`; what is ready in one tick of the
    event loop goes in one message. A stream that breaks fails the questions on it with ServiceUnavailable, and the next
    question opens another. Close it before its channel."""

    def __init__(
        self, channel: grpc.aio.Channel, address: str, *, margin: float = MARGIN, max_age: float = MAX_AGE
    ) -> None:
        self._stub = AdapterServiceStub(channel)
        self._address = address
        self._margin = margin
        self._max_age = max_age
        self._width = address.count(",") + 1
        self._streams: list[CompletionStream] = []  # those that take questions
        self._running: set[CompletionStream] = set()  # those, and the ones that wait for their last answers
        self._ids = count(1)

    async def complete(self, request: CompletionRequest) -> Completion:
        item = pb.CompletionItem(item_id=next(self._ids), request=request_to_pb(request))
        size = item.ByteSize()
        if size > MAX_MESSAGE:
            raise TooLarge(f"the prompt to {request.model!r} has {size} bytes, and at most {MAX_MESSAGE} can be sent")
        return await self._stream().ask(item, size, request.timeout + self._margin)

    async def check_models(self, models: Sequence[str]) -> list[ModelCheck]:
        with domain_errors(self._address, "adapter"):
            response = await self._stub.CheckModels(pb.CheckModelsRequest(models=models))
        return [check_from_pb(check) for check in response.checks]

    async def list_models(self) -> list[ModelInfo]:
        with domain_errors(self._address, "adapter"):
            response = await self._stub.ListModels(pb.ListModelsRequest())
        return [model_from_pb(model) for model in response.models]

    async def aclose(self) -> None:
        """Questions that have no answer yet fail with ServiceUnavailable."""
        await asyncio.gather(*(stream.aclose() for stream in self._running))

    async def __aenter__(self) -> AdapterClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _stream(self) -> CompletionStream:
        """The stream with the fewest questions; a new one where one is missing or has grown old."""
        now = asyncio.get_running_loop().time()
        for stream in [stream for stream in self._streams if stream.retired or now >= stream.retire_at]:
            self._streams.remove(stream)
            stream.retire()
        if len(self._streams) < self._width:
            # Not all Runners at once: each stream gets an age of its own.
            retire_at = now + self._max_age * random.uniform(0.8, 1.0)
            stream = CompletionStream(self._stub.CompleteMany, self._address, retire_at, on_end=self._ended)
            self._streams.append(stream)
            self._running.add(stream)
            return stream
        return min(self._streams, key=len)

    def _ended(self, stream: CompletionStream) -> None:
        self._running.discard(stream)
        if stream in self._streams:
            self._streams.remove(stream)
