"""Answers that come piece by piece: over real HTTP, from a server that speaks the OpenAI format."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from promptlooper.adapter.app import gateway_from
from promptlooper.adapter.gateway import Gateway
from promptlooper.completion import CompletionRequest, Message
from promptlooper.errors import DeadlineExceeded, ProviderMalformed, ProviderRejected, ProviderUnavailable
from promptlooper.testing.provider import FakeProvider, Reply, error


@asynccontextmanager
async def asked(fake: FakeProvider) -> AsyncIterator[Gateway]:
    async with fake, gateway_from(env={"OPENAI_BASE_URL": fake.base_url}) as gateway:
        yield gateway


def question(model: str = "openai/m", timeout: float = 30.0) -> CompletionRequest:
    return CompletionRequest(model, (Message("user", "say it"),), {}, timeout)


async def test_pieces_come_as_they_are_generated_and_the_whole_is_as_without_a_stream() -> None:
    go = asyncio.Event()
    reply = Reply("one two three", pause=go, tokens_in=7, tokens_out=3, message={"reasoning_content": "hm"})
    async with asked(FakeProvider(reply)) as gateway:
        pieces: list[str] = []
        first = asyncio.Event()

        def hear(piece: str) -> None:
            pieces.append(piece)
            first.set()

        task = asyncio.create_task(gateway.complete(question(), hear))
        await first.wait()
        assert pieces == ["one "]
        assert not task.done()
        go.set()
        streamed = await task
        whole = await gateway.complete(question())
    assert pieces == ["one ", "two ", "three"]
    assert (streamed.output, streamed.finish_reason, streamed.reasoning) == ("one two three", "stop", "hm")
    assert (streamed.tokens_in, streamed.tokens_out, streamed.model) == (7, 3, whole.model)
    assert streamed.ttft_ms is not None
    assert whole.ttft_ms is None


async def test_what_cannot_stream_comes_in_one_piece() -> None:
    async with asked(FakeProvider(Reply("one two", streams=False))) as gateway:
        pieces: list[str] = []
        assert (await gateway.complete(question(), pieces.append)).output == "one two"
    assert pieces == ["one two"]


async def test_a_refusal_is_the_output_as_it_is_without_a_stream() -> None:
    parts = (
        b'{"choices": [{"delta": {"refusal": "I can"}}]}',
        b'{"choices": [{"delta": {"refusal": "not."}}]}',
        b'{"choices": [{"delta": {}, "finish_reason": "stop"}]}',
    )
    body = b"".join(b"data: " + part + b"\n\n" for part in parts)
    async with asked(FakeProvider(Reply(body=body, headers={"content-type": "text/event-stream"}))) as gateway:
        pieces: list[str] = []
        assert (await gateway.complete(question(), pieces.append)).output == "I cannot."
    assert pieces == ["I cannot."]


async def test_errors_before_the_first_piece_are_retried_and_after_it_not() -> None:
    fake = FakeProvider(Reply("one two three four", cut=True))
    fake.script.extend([error(429, retry_after="0"), error(500)])
    async with asked(fake) as gateway:
        pieces: list[str] = []
        with pytest.raises(ProviderUnavailable, match="connection") as raised:
            await gateway.complete(question(), pieces.append)
        assert pieces == ["one ", "two "]
        assert raised.value.attempts == len(fake.requests) == 3
        fake.answer = error(400, "no")
        with pytest.raises(ProviderRejected):
            await gateway.complete(question(), pieces.append)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n', "finish_reason"),
        (b"data: {oops\n\n", "not JSON"),
        (b"data: [1]\n\n", "not a JSON object"),
        (b"", "finish_reason"),
    ],
)
async def test_a_stream_that_ends_early_or_is_none_is_no_answer(body: bytes, said: str) -> None:
    reply = Reply(body=body, headers={"content-type": "text/event-stream"})
    async with asked(FakeProvider(reply)) as gateway:
        with pytest.raises(ProviderMalformed, match=said):
            await gateway.complete(question(timeout=5.0), lambda piece: None)


async def test_an_error_within_the_stream_is_an_error() -> None:
    body = b': hello\n\nevent: x\ndata: {"error": {"message": "no more", "code": 503}}\n\n'
    async with asked(FakeProvider(Reply(body=body, headers={"content-type": "text/event-stream"}))) as gateway:
        with pytest.raises(ProviderUnavailable, match="no more"):
            await gateway.complete(question(), lambda piece: None)


async def test_a_caller_that_goes_or_has_no_time_stops_the_call() -> None:
    fake = FakeProvider(Reply("one two", pause=asyncio.Event()))
    async with asked(fake) as gateway:
        first = asyncio.Event()
        task = asyncio.create_task(gateway.complete(question(), lambda piece: first.set()))
        await first.wait()
        task.cancel()
        await fake.eventually(lambda f: f.hung_up == 1)
        with pytest.raises(DeadlineExceeded):
            await gateway.complete(question(timeout=0.2), lambda piece: None)
        await fake.eventually(lambda f: f.hung_up == 2)


async def test_the_mock_streams_words(tmp_path: Path) -> None:
    async with gateway_from(env={}) as gateway:
        pieces: list[str] = []
        done = await gateway.complete(question("mock/echo"), pieces.append)
    assert pieces == ["say ", "it"]
    assert done.output == "say it"
