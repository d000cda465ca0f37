"""Completions over one stream: batches, errors, cancels, breaks, drain."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import pytest

from promptlooper.clients.adapter import AdapterClient
from promptlooper.completion import Completion
from promptlooper.errors import (
    ERRORS_BY_REASON,
    CompletionFailed,
    DeadlineExceeded,
    DomainError,
    InvalidArgument,
    ProviderRejected,
    ServiceUnavailable,
    StoreUnavailable,
    TooLarge,
)
from promptlooper.rpc.client import domain_errors, open_channel
from promptlooper.v1 import adapter_service_pb2 as pb
from promptlooper.v1.adapter_service_pb2_grpc import AdapterServiceStub


class Hold:
    """Keeps questions waiting until it is let go."""

    def __init__(self) -> None:
        self.released = asyncio.Event()

    async def __call__(self, request: Any) -> Completion:
        await self.released.wait()
        return Completion(f"late {request.messages[-1].content}", "echo", "stop")


async def test_completion_arrives_with_all_its_facts(adapter: Any, ask: Any) -> None:
    full = Completion("out", "m-1", "length", 1, 2, 3, 4, 5, 6, 7, 8, "because")

    async def answer(request: Any) -> Completion:
        return full

    adapter.gateway.answer = answer
    request = ask("hi", temperature=0, stop="END", logit_bias={"5": 1})
    assert await adapter.client.complete(request) == full
    assert adapter.gateway.asked == [request]


async def test_thousand_questions_at_once_travel_in_few_messages_on_one_stream(adapter: Any, ask: Any) -> None:
    answers = await asyncio.gather(*(adapter.client.complete(ask(str(n))) for n in range(1000)))
    assert [answer.output for answer in answers] == [str(n) for n in range(1000)]
    assert adapter.servicer.streams == 1
    assert adapter.servicer.requests == 4  # 256 items each
    assert adapter.servicer.responses <= 50


async def test_message_of_questions_ends_at_a_mebibyte(adapter: Any, ask: Any) -> None:
    await asyncio.gather(*(adapter.client.complete(ask("x" * 400_000)) for _ in range(6)))
    assert adapter.servicer.requests == 3


@pytest.mark.parametrize("reason", sorted(set(ERRORS_BY_REASON) - {"DRAINING", "INVALID_EXPERIMENT"}))
async def test_error_of_the_core_is_raised_again_with_its_facts(adapter: Any, ask: Any, reason: str) -> None:
    error = ERRORS_BY_REASON[reason]("what to do", retry_after=1.5, provider="mock")
    if isinstance(error, CompletionFailed):
        error.attempts = 3

    async def fail(request: Any) -> Completion:
        raise error

    adapter.gateway.answer = fail
    with pytest.raises(ERRORS_BY_REASON[reason]) as caught:
        await adapter.client.complete(ask())
    found = caught.value
    assert (type(found), found.reason, found.message) == (type(error), reason, "what to do")
    assert (found.retry_after, found.metadata) == (1.5, {"provider": "mock"})
    assert not isinstance(found, CompletionFailed) or found.attempts == 3


async def test_error_of_one_question_leaves_the_others(adapter: Any, ask: Any) -> None:
    async def answer(request: Any) -> Completion:
        if request.messages[-1].content == "bad":
            raise ProviderRejected("no")
        return Completion("fine", "echo", "stop")

    adapter.gateway.answer = answer
    results = await asyncio.gather(
        *(adapter.client.complete(ask(text)) for text in ("good", "bad", "good")), return_exceptions=True
    )
    assert [type(result) for result in results] == [Completion, ProviderRejected, Completion]


async def test_fault_of_the_core_says_nothing_but_internal(
    adapter: Any, ask: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: Any) -> Completion:
        raise RuntimeError("secret")

    adapter.gateway.answer = fail
    with caplog.at_level(logging.CRITICAL), pytest.raises(DomainError) as caught:
        await adapter.client.complete(ask())
    assert (caught.value.reason, caught.value.message) == ("INTERNAL", "internal error")


async def test_cancelled_question_is_cancelled_in_the_core_and_the_stream_lives_on(adapter: Any, ask: Any) -> None:
    adapter.gateway.answer = hold = Hold()
    tasks = [asyncio.create_task(adapter.client.complete(ask(text))) for text in ("one", "two")]
    await adapter.gateway.until(lambda: len(adapter.gateway.asked) == 2)
    tasks[0].cancel()
    await adapter.gateway.until(lambda: adapter.gateway.cancelled == ["one"])
    hold.released.set()
    assert (await tasks[1]).output == "late two"
    assert adapter.servicer.streams == 1
    assert adapter.servicer.ended.empty()


async def test_question_cancelled_before_it_was_sent_is_never_sent(adapter: Any, ask: Any) -> None:
    tasks = [asyncio.create_task(adapter.client.complete(ask(text))) for text in ("one", "two")]
    await asyncio.sleep(0)
    tasks[0].cancel()
    assert (await tasks[1]).output == "two"
    assert [request.messages[-1].content for request in adapter.gateway.asked] == ["two"]


async def test_broken_stream_fails_what_is_on_it_and_the_next_question_opens_another(adapter: Any, ask: Any) -> None:
    adapter.servicer.break_with = StoreUnavailable("pulled the plug")
    results = await asyncio.gather(*(adapter.client.complete(ask()) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [ServiceUnavailable] * 3
    assert "pulled the plug" in str(results[0])
    assert results[0].metadata == {"address": adapter.address}
    adapter.servicer.break_with = None
    assert (await adapter.client.complete(ask("again"))).output == "again"
    assert adapter.servicer.streams == 2


async def test_adapter_that_is_not_there_is_named(ask: Any, unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    async with open_channel(address) as channel, AdapterClient(channel, address) as client:
        with pytest.raises(ServiceUnavailable, match=f"no adapter answers at {address}: start it"):
            await client.complete(ask())


async def test_client_that_goes_cancels_all_its_questions(adapter: Any, ask: Any) -> None:
    adapter.gateway.answer = Hold()
    async with open_channel(adapter.address) as channel:
        client = AdapterClient(channel, adapter.address)
        tasks = [asyncio.create_task(client.complete(ask(str(n)))) for n in range(3)]
        await adapter.gateway.until(lambda: len(adapter.gateway.asked) == 3)
        await client.aclose()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [ServiceUnavailable] * 3
    await adapter.gateway.until(lambda: sorted(adapter.gateway.cancelled) == ["0", "1", "2"])


async def test_client_closed_in_the_tick_of_a_question_fails_it(adapter: Any, ask: Any) -> None:
    task = asyncio.create_task(adapter.client.complete(ask()))
    await asyncio.sleep(0)
    await adapter.client.aclose()
    with pytest.raises(ServiceUnavailable, match="closed its connection"):
        await task


async def test_draining_adapter_answers_what_it_has_and_takes_no_more(adapter: Any, ask: Any) -> None:
    adapter.gateway.answer = hold = Hold()
    first = asyncio.create_task(adapter.client.complete(ask("one")))
    await adapter.gateway.until(lambda: len(adapter.gateway.asked) == 1)
    adapter.servicer.drain()
    with pytest.raises(ServiceUnavailable, match="shutting down"):
        await adapter.client.complete(ask("two"))
    hold.released.set()
    assert (await first).output == "late one"
    await asyncio.wait_for(adapter.servicer.ended.get(), 10)
    assert len(adapter.gateway.asked) == 1


async def test_core_that_never_answers_is_ended_by_the_timeout_of_the_question(adapter_with: Any, ask: Any) -> None:
    async with adapter_with(grace=0.0, margin=60.0) as adapter:
        adapter.gateway.answer = Hold()
        with pytest.raises(DeadlineExceeded, match="no answer in time") as caught:
            await adapter.client.complete(ask("slow", timeout=0.01))
        assert caught.value.attempts == 1  # nobody knows: it may be billed
        assert adapter.gateway.cancelled == ["slow"]


async def test_adapter_that_never_answers_is_given_up_and_told_so(adapter_with: Any, ask: Any) -> None:
    async with adapter_with(grace=60.0, margin=0.0) as adapter:
        adapter.gateway.answer = Hold()
        with pytest.raises(DeadlineExceeded, match="gave no answer within") as caught:
            await adapter.client.complete(ask("slow", timeout=0.05))
        assert caught.value.attempts == 1  # nobody knows: it may be billed
        await adapter.gateway.until(lambda: adapter.gateway.cancelled == ["slow"])


async def test_old_stream_gives_way_and_ends_with_its_last_answer(adapter_with: Any, ask: Any) -> None:
    async with adapter_with(max_age=0.0) as adapter:
        adapter.gateway.answer = hold = Hold()
        first = asyncio.create_task(adapter.client.complete(ask("one")))
        await adapter.gateway.until(lambda: len(adapter.gateway.asked) == 1)
        second = asyncio.create_task(adapter.client.complete(ask("two")))
        await adapter.gateway.until(lambda: len(adapter.gateway.asked) == 2)
        assert (adapter.servicer.streams, adapter.servicer.ended.qsize()) == (2, 0)
        hold.released.set()
        assert [(await task).output for task in (first, second)] == ["late one", "late two"]
        await asyncio.wait_for(adapter.servicer.ended.get(), 10)


async def test_more_questions_than_a_stream_takes_wait_their_turn(adapter_with: Any, ask: Any) -> None:
    async with adapter_with(max_in_flight=5) as adapter:
        adapter.gateway.answer = hold = Hold()
        tasks = [asyncio.create_task(adapter.client.complete(ask(str(n)))) for n in range(20)]
        await adapter.gateway.until(lambda: len(adapter.gateway.asked) == 5)
        hold.released.set()
        assert [answer.output for answer in await asyncio.gather(*tasks)] == [f"late {n}" for n in range(20)]


async def test_question_that_is_too_large_fails_alone(adapter: Any, ask: Any) -> None:
    results = await asyncio.gather(
        adapter.client.complete(ask("x" * 4_000_000)), adapter.client.complete(ask("y")), return_exceptions=True
    )
    assert [type(result) for result in results] == [TooLarge, Completion]


async def test_answer_that_is_too_large_fails_alone(adapter: Any, ask: Any) -> None:
    async def answer(request: Any) -> Completion:
        return Completion("z" * int(request.messages[-1].content), "echo", "stop")

    adapter.gateway.answer = answer
    results = await asyncio.gather(
        *(adapter.client.complete(ask(size)) for size in ("4000000", "3", "900000", "900000")), return_exceptions=True
    )
    assert [type(result) for result in results] == [TooLarge, Completion, Completion, Completion]


async def test_question_that_cannot_be_read_fails_alone(adapter: Any) -> None:
    call = AdapterServiceStub(adapter.channel).CompleteMany()
    bad = pb.CompletionItem(item_id=1)
    bad.request.sampling.extra_json = "{"
    good = pb.CompletionItem(item_id=2)
    good.request.messages.add(role="user", content="fine")
    await call.write(pb.CompleteManyRequest(items=[bad, good]))
    await call.done_writing()
    results = {result.item_id: result async for response in call for result in response.results}
    assert results[1].error.reason == "INVALID_ARGUMENT"
    assert dict(results[1].error.metadata) == {"field": "request.sampling.extra_json"}
    assert results[2].completion.output == "fine"
    assert await call.code() is grpc.StatusCode.OK


async def test_item_id_that_is_in_use_ends_the_stream(adapter: Any) -> None:
    adapter.gateway.answer = Hold()
    call = AdapterServiceStub(adapter.channel).CompleteMany()
    item = pb.CompletionItem(item_id=7)
    item.request.messages.add(role="user", content="x")
    await call.write(pb.CompleteManyRequest(items=[item, item]))
    with pytest.raises(InvalidArgument, match="item_id 7 has no answer yet"), domain_errors(adapter.address):
        await call.read()
