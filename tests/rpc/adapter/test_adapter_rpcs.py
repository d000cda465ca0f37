"""The Adapter's unary RPCs."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from promptlooper.clients.adapter import connected
from promptlooper.completion import Completion, ModelCheck, ModelInfo, Price
from promptlooper.embeddings import MAX_INPUTS, MAX_NUMBERS, EmbeddingRequest, Embeddings
from promptlooper.errors import (
    ERRORS_BY_REASON,
    CompletionFailed,
    DeadlineExceeded,
    DomainError,
    Draining,
    InvalidArgument,
    ProviderRateLimited,
    ServiceUnavailable,
    TooLarge,
)
from promptlooper.rpc.client import domain_errors
from promptlooper.v1 import adapter_service_pb2 as pb
from promptlooper.v1.adapter_service_pb2_grpc import AdapterServiceStub
from promptlooper.wire.completion import completion_from_pb, request_to_pb


async def test_complete_answers_one_question(adapter: Any, ask: Any) -> None:
    stub = AdapterServiceStub(adapter.channel)
    response = await stub.Complete(pb.CompleteRequest(request=request_to_pb(ask("hi"))))
    assert completion_from_pb(response.completion) == Completion("hi", "echo", "stop", latency_ms=1)


async def test_complete_gives_the_core_no_more_time_than_the_caller_has(adapter: Any, ask: Any) -> None:
    stub = AdapterServiceStub(adapter.channel)
    await stub.Complete(pb.CompleteRequest(request=request_to_pb(ask("hi", timeout=500.0))), timeout=20)
    await stub.Complete(pb.CompleteRequest(request=request_to_pb(ask("hi", timeout=3.0))), timeout=20)
    assert adapter.gateway.asked[0].timeout < 21  # grpc rounds a deadline up
    assert adapter.gateway.asked[1].timeout == 3.0


async def test_embed_gives_each_text_its_vector(adapter: Any) -> None:
    request = EmbeddingRequest("mock/e", ("a", "b €"), 2, {"user": "u", "n": 3}, 30.0)
    found = await adapter.client.embed(request)
    assert adapter.gateway.embedded == [request]
    assert found == Embeddings((array("f", [1, 0.5]), array("f", [3, 0.5])), "e", 7, 3, 11, "list 1", 2)


async def test_embed_gives_the_core_no_more_time_than_the_caller_has(adapter: Any) -> None:
    stub = AdapterServiceStub(adapter.channel)
    await stub.Embed(pb.EmbedRequest(model="mock/e", inputs=["a"], timeout_ms=500_000), timeout=20)
    await stub.Embed(pb.EmbedRequest(model="mock/e", inputs=["a"]), timeout=100)
    assert adapter.gateway.embedded[0].timeout < 21  # grpc rounds a deadline up
    assert adapter.gateway.embedded[1].timeout == 60.0


async def test_as_many_vectors_as_may_be_fit_into_an_answer(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Embeddings((array("f", [0.1] * (MAX_NUMBERS // MAX_INPUTS)),) * MAX_INPUTS, "e" * 100)

    async def most(request: EmbeddingRequest) -> Embeddings:
        return whole

    monkeypatch.setattr(adapter.gateway, "embed", most)
    assert await adapter.client.embed(EmbeddingRequest("mock/e", ("a" * 500,) * MAX_INPUTS)) == whole


async def test_too_many_texts_are_refused_before_they_are_sent(adapter: Any) -> None:
    with pytest.raises(TooLarge, match="at most 2048"):
        await adapter.client.embed(EmbeddingRequest("mock/e", ("a",) * 2049))
    assert adapter.gateway.embedded == []


async def test_error_of_embed_is_raised_again_with_its_facts(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(request: EmbeddingRequest) -> Embeddings:
        raise ProviderRateLimited("wait", attempts=2, retry_after=7.0, provider="p")

    monkeypatch.setattr(adapter.gateway, "embed", fail)
    with pytest.raises(ProviderRateLimited, match="wait") as caught:
        await adapter.client.embed(EmbeddingRequest("p/m", ("a",)))
    assert (caught.value.attempts, caught.value.retry_after, caught.value.metadata) == (2, 7.0, {"provider": "p"})


async def test_embed_of_an_adapter_that_is_gone_says_so(adapter: Any) -> None:
    async with connected("127.0.0.1:1") as client:
        with pytest.raises(ServiceUnavailable) as caught:
            await client.embed(EmbeddingRequest("p/m", ("a",), timeout=1.0))
    assert caught.value.sent


@pytest.mark.parametrize("reason", sorted(set(ERRORS_BY_REASON) - {"INVALID_EXPERIMENT"}))
async def test_error_of_complete_is_raised_again_with_its_facts(adapter: Any, ask: Any, reason: str) -> None:
    error = ERRORS_BY_REASON[reason]("what to do", provider="mock")
    error.retry_after = None if error.retryable and reason in ("DRAINING", "STORE_UNAVAILABLE") else 0.5
    if isinstance(error, CompletionFailed):
        error.attempts = 2

    async def fail(request: Any) -> Completion:
        raise error

    adapter.gateway.answer = fail
    with pytest.raises(ERRORS_BY_REASON[reason]) as caught, domain_errors(adapter.address):
        await AdapterServiceStub(adapter.channel).Complete(pb.CompleteRequest(request=request_to_pb(ask())))
    found = caught.value
    assert (type(found), found.reason, found.message) == (type(error), reason, "what to do")
    assert (found.retry_after, found.metadata) == (error.retry_after, {"provider": "mock"})
    assert not isinstance(found, CompletionFailed) or found.attempts == 2


async def test_models_are_checked_in_order(adapter: Any) -> None:
    assert await adapter.client.check_models(["mock/echo", "nope/x"]) == [
        ModelCheck("mock/echo", price=Price(1, 2), endpoint="abc"),
        ModelCheck("nope/x", "UNKNOWN_PROVIDER", "no such provider"),
    ]


async def test_too_many_models_are_refused(adapter: Any) -> None:
    with pytest.raises(InvalidArgument, match="models: at most 1000"):
        await adapter.client.check_models(["mock/echo"] * 1001)


@pytest.mark.parametrize("error", [DeadlineExceeded("slow"), Draining("leaving")])
async def test_adapter_that_is_slow_or_leaving_counts_as_away(
    adapter: Any, error: DomainError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for an Adapter waits for this one too; nothing fails for it."""

    async def fail(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(adapter.gateway, "check_models", fail)
    monkeypatch.setattr(adapter.gateway, "list_models", fail)
    with pytest.raises(ServiceUnavailable, match=error.message):
        await adapter.client.check_models(["mock/echo"])
    with pytest.raises(ServiceUnavailable, match=error.message):
        await adapter.client.list_models()


async def test_models_are_listed(adapter: Any) -> None:
    async with connected(adapter.address) as client:
        assert await client.list_models() == [
            ModelInfo("mock/echo", "mock", True, None, Price(0, 0)),
            ModelInfo("x/y", "x", False, "give the key"),
        ]
