"""StreamComplete: an answer piece by piece in a call of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from promptlooper.completion import Completion
from promptlooper.errors import ProviderRateLimited
from promptlooper.rpc.client import domain_errors
from promptlooper.v1 import adapter_service_pb2 as pb
from promptlooper.v1.adapter_service_pb2_grpc import AdapterServiceStub
from promptlooper.wire.completion import completion_from_pb, request_to_pb


def streamed(adapter: Any, request: Any) -> grpc.aio.UnaryStreamCall[Any, Any]:
    return AdapterServiceStub(adapter.channel).StreamComplete(pb.StreamCompleteRequest(request=request_to_pb(request)))


async def test_pieces_travel_before_the_answer_is_there(adapter: Any, ask: Any, talking: Any) -> None:
    adapter.servicer._core = core = talking("a", "bä", "c")
    messages = aiter(streamed(adapter, ask(timeout=3.0)))
    assert (await anext(messages)).delta == "abäc"  # they were ready together
    core.go.set()
    last = [completion_from_pb(message.completion) async for message in messages]
    assert last == [Completion("abäc", "m", "stop", 1, 2, latency_ms=5, ttft_ms=1)]
    assert core.asked[0].timeout <= 3.0


async def test_errors_come_with_their_facts_also_after_pieces(adapter: Any, ask: Any, talking: Any) -> None:
    adapter.servicer._core = core = talking("a")
    core.fails = ProviderRateLimited("wait", attempts=2, retry_after=7.0, provider="p")
    core.go.set()
    messages = aiter(streamed(adapter, ask()))
    assert (await anext(messages)).delta == "a"
    with pytest.raises(ProviderRateLimited, match="wait") as raised, domain_errors(adapter.address):
        await anext(messages)
    assert (raised.value.attempts, raised.value.retry_after) == (2, 7.0)


async def test_a_caller_that_goes_stops_the_call(adapter: Any, ask: Any, talking: Any) -> None:
    adapter.servicer._core = core = talking("a")
    call = streamed(adapter, ask())
    await call.read()
    call.cancel()
    async with asyncio.timeout(10):
        await core.stopped.wait()
