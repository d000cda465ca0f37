"""An Adapter over gRPC with a scripted core."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from promptlooper.adapter.servicer import SERVICE_NAME, AdapterCore, AdapterServicer
from promptlooper.clients.adapter import AdapterClient
from promptlooper.completion import (
    Completion,
    CompletionGateway,
    CompletionRequest,
    Message,
    ModelCheck,
    ModelInfo,
    OnDelta,
    Price,
)
from promptlooper.embeddings import EmbeddingGateway, EmbeddingRequest, Embeddings
from promptlooper.rpc.client import open_channel
from promptlooper.rpc.server import serving

Answer = Callable[[CompletionRequest], Awaitable[Completion]]


async def echo(request: CompletionRequest) -> Completion:
    return Completion(output=request.messages[-1].content, model="echo", finish_reason="stop", latency_ms=1)


class ScriptedGateway(CompletionGateway, EmbeddingGateway):
    """Answers as `answer` says; records what it was asked and which questions were cancelled."""

    def __init__(self) -> None:
        self.answer: Answer = echo
        self.asked: list[CompletionRequest] = []
        self.cancelled: list[str] = []
        self.embedded: list[EmbeddingRequest] = []
        self.changed = asyncio.Condition()

    async def complete(self, request: CompletionRequest, on_delta: OnDelta | None = None) -> Completion:
        await self._note(self.asked, request)
        try:
            return await self.answer(request)
        except asyncio.CancelledError:
            await self._note(self.cancelled, request.messages[-1].content)
            raise

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        self.embedded.append(request)
        vectors = tuple(array("f", [len(text), 0.5]) for text in request.inputs)
        return Embeddings(vectors, "e", 7, 3, 11, "list 1", 2)

    async def _note(self, notes: list[Any], note: Any) -> None:
        async with self.changed:
            notes.append(note)
            self.changed.notify_all()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(holds)

    async def check_models(self, models: Sequence[str]) -> list[ModelCheck]:
        known = ModelCheck(models[0], price=Price(1, 2), endpoint="abc")
        return [known, *(ModelCheck(model, "UNKNOWN_PROVIDER", "no such provider") for model in models[1:])]

    async def list_models(self) -> list[ModelInfo]:
        return [ModelInfo("mock/echo", "mock", True, None, Price(0, 0)), ModelInfo("x/y", "x", False, "give the key")]


class Talking(ScriptedGateway):
    """Says pieces, then waits until `go` is set, then answers or raises `fails`."""

    def __init__(self, *pieces: str) -> None:
        super().__init__()
        self.pieces, self.go, self.stopped = pieces, asyncio.Event(), asyncio.Event()
        self.fails: Exception | None = None

    async def complete(self, request: CompletionRequest, on_delta: OnDelta | None = None) -> Completion:
        self.asked.append(request)
        assert on_delta is not None
        for piece in self.pieces:
            on_delta(piece)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.stopped.set()
            raise
        if self.fails is not None:
            raise self.fails
        return Completion("".join(self.pieces), "m", "stop", 1, 2, latency_ms=5, ttft_ms=1)


class CountingServicer(AdapterServicer):
    """Counts streams and messages, and can break streams. `ignores_deltas`, as 0.1.0 does, which does not know them."""

    def __init__(self, core: AdapterCore, **options: Any) -> None:
        super().__init__(core, **options)
        self.streams = self.requests = self.responses = 0
        self.ended: asyncio.Queue[None] = asyncio.Queue()
        self.break_with: Exception | None = None
        self.ignores_deltas = False

    async def CompleteMany(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        self.streams += 1

        async def counted() -> AsyncIterator[Any]:
            async for request in request_iterator:
                self.requests += 1
                if self.break_with is not None:
                    broken.set_exception(self.break_with)
                if self.ignores_deltas:
                    for item in request.items:
                        item.ClearField("deltas")
                yield request

        broken: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        responses = super().CompleteMany(counted(), context)
        try:
            while True:
                following = asyncio.ensure_future(anext(responses))
                await asyncio.wait({following, broken}, return_when=asyncio.FIRST_COMPLETED)
                if broken.done():
                    following.cancel()
                    await asyncio.wait({following})
                    raise broken.exception()
                try:
                    response = following.result()
                except StopAsyncIteration:
                    return
                self.responses += 1
                yield response
        finally:
            following.cancel()
            await asyncio.wait({following})
            broken.cancel()
            self.ended.put_nowait(None)


@dataclass
class Adapter:
    gateway: ScriptedGateway
    servicer: CountingServicer
    channel: grpc.aio.Channel
    client: AdapterClient
    address: str


def question(text: str = "hello", timeout: float = 30.0, **params: Any) -> CompletionRequest:
    return CompletionRequest("mock/echo", (Message("user", text),), params, timeout)


@pytest.fixture
def ask() -> Callable[..., CompletionRequest]:
    return question


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Adapter]:
    gateway = ScriptedGateway()
    client_options = {name: options.pop(name) for name in ("margin", "max_age") if name in options}
    servicer = CountingServicer(gateway, **options)
    async with (
        serving(
            "127.0.0.1:0",
            {SERVICE_NAME: servicer.register},
            health_listen="127.0.0.1:0",
            on_drain=servicer.drain,
        ) as server,
        open_channel(f"127.0.0.1:{server.port}") as channel,
        AdapterClient(channel, f"127.0.0.1:{server.port}", **client_options) as client,
    ):
        yield Adapter(gateway, servicer, channel, client, f"127.0.0.1:{server.port}")


@pytest.fixture
def adapter_with() -> Callable[..., Any]:
    return running


@pytest.fixture
async def adapter() -> AsyncIterator[Adapter]:
    async with running() as adapter:
        yield adapter


@pytest.fixture
def new_gateway() -> type[ScriptedGateway]:
    return ScriptedGateway


@pytest.fixture
def talking() -> type[Talking]:
    return Talking
