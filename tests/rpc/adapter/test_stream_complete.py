"""StreamComplete, client to core."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from promptlooper.completion import Completion, CompletionRequest, OnDelta
from promptlooper.errors import ProviderRateLimited, ServiceUnavailable


class Talking:
    """Says pieces, then waits until `go` is set, then answers or raises."""

    def __init__(self, *pieces: str, fails: Exception | None = None) -> None:
        self.pieces, self.fails, self.go, self.cancelled = pieces, fails, asyncio.Event(), asyncio.Event()
        self.asked: list[CompletionRequest] = []

    async def complete(self, request: CompletionRequest, on_delta: OnDelta | None = None) -> Completion:
        self.asked.append(request)
        assert on_delta is not None
        for piece in self.pieces:
            on_delta(piece)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.fails is not None:
            raise self.fails
        return Completion("".join(self.pieces), "m", "stop", 1, 2, latency_ms=5, ttft_ms=1)


@pytest.fixture
def talking(adapter: Any) -> Any:
    def make(*pieces: str, **options: Any) -> Talking:
        core = Talking(*pieces, **options)
        adapter.servicer._core = core
        return core

    return make


async def test_pieces_travel_before_the_answer_is_there(adapter: Any, ask: Any, talking: Any) -> None:
    core = talking("a", "bä", "c")
    heard: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.create_task(adapter.client.complete(ask(timeout=3.0), heard.put_nowait))
    assert [await heard.get() for _ in range(3)] == ["a", "bä", "c"]
    assert not task.done()
    core.go.set()
    assert await task == Completion("abäc", "m", "stop", 1, 2, latency_ms=5, ttft_ms=1)
    assert core.asked[0].timeout <= 3.0


async def test_errors_come_with_their_facts_also_after_pieces(adapter: Any, ask: Any, talking: Any) -> None:
    core = talking("a", fails=ProviderRateLimited("wait", attempts=2, retry_after=7.0, provider="p"))
    core.go.set()
    with pytest.raises(ProviderRateLimited, match="wait") as raised:
        await adapter.client.complete(ask(), lambda piece: None)
    assert (raised.value.attempts, raised.value.retry_after) == (2, 7.0)


async def test_a_caller_that_goes_stops_the_call(adapter: Any, ask: Any, talking: Any) -> None:
    core = talking("a")
    first = asyncio.Event()
    task = asyncio.create_task(adapter.client.complete(ask(), lambda piece: first.set()))
    await first.wait()
    task.cancel()
    async with asyncio.timeout(10):
        await core.cancelled.wait()


async def test_a_lost_answer_may_have_been_paid_for(ask: Any) -> None:
    from promptlooper.clients.adapter import connected

    async with connected("127.0.0.1:1") as client:
        with pytest.raises(ServiceUnavailable) as raised:
            await client.complete(ask(timeout=2.0), lambda piece: None)
    assert raised.value.sent
