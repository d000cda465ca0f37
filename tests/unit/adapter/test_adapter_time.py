"""Time and size of answers over the real wire: what stalls or never ends is given up, and what it cost is known."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from promptlooper.adapter.heard import streams
from promptlooper.adapter.providers.sse import LONGEST_LINE, MOST_EVENTS
from promptlooper.errors import CompletionFailed, DeadlineExceeded, ProviderRejected, ProviderUnavailable
from promptlooper.testing.provider import FakeProvider, Reply
from promptlooper.testing.wires import Reply as WireReply
from promptlooper.testing.wires import WireServer
from promptlooper.testing.wires.anthropic import AnthropicWire


def gpu(fake: FakeProvider, settings: str) -> str:
    return f"providers: [{{name: gpu, type: openai, base_url: '{fake.base_url}', {settings}}}]"


@pytest.mark.parametrize(
    ("settings", "reply", "said"),
    [
        ("stream: always, timeouts: {first_token: 0.05}", Reply(until=asyncio.Event()), "nothing came within 0.05 s"),
        ("stream: always, timeouts: {idle: 0.05}", Reply("a b c", pause=asyncio.Event()), "nothing more came within"),
        ("stream: always, timeouts: {total: 0.05}", Reply("a b c", pause=asyncio.Event()), "no whole answer within"),
        ("timeouts: {total: 0.05}", Reply(until=asyncio.Event()), "no whole answer within 0.05 s .timeouts.total"),
    ],
)
async def test_an_answer_that_stalls_is_given_up_and_asked_for_again(gateways, fake, asking, settings, reply, said):
    gateway = gateways(gpu(fake, settings))
    fake.answer = reply
    with pytest.raises(ProviderUnavailable, match=said) as caught:
        await gateway.complete(asking(model="gpu/m"))
    assert caught.value.attempts == 3
    await fake.eventually(lambda f: f.hung_up == 3 and f.open == 0)


async def test_a_stall_before_the_first_token_is_another_routes_turn_and_after_it_not(gateways, fake, asking):
    text = gpu(fake, "timeouts: {first_token: 0.05, idle: 0.05}, fallbacks: {'*': [mock/ok]}")
    gateway = gateways(text)
    pieces: list[str] = []
    fake.answer = Reply(until=asyncio.Event())
    assert (await gateway.complete(asking(model="gpu/m"), pieces.append)).model == "mock/ok"
    fake.answer = Reply("a b", pause=asyncio.Event())
    with pytest.raises(ProviderUnavailable, match=r"timeouts\.idle"):
        await gateway.complete(asking(model="gpu/other"), pieces.append)
    assert pieces == ["ok", "a "]


async def test_a_question_that_was_read_is_counted_though_nothing_came_of_it(gateways, asking, key):
    reply = WireReply(upto=lambda body: body.index(b"event: content_block_start"), then="hang")
    async with WireServer(AnthropicWire(), reply) as server:
        gateway = gateways(
            f"providers: [{{name: gpu, type: anthropic, base_url: '{server.base_url}', api_key_env: KEY, "
            f"stream: always, timeouts: {{first_token: 0.2}}}}]",
            KEY=key,
        )
        with pytest.raises(ProviderUnavailable):
            await gateway.complete(asking(model="gpu/m", max_tokens=5))
        await server.closed()
    assert gateway.counts.tokens_given_up["gpu", "m", "input"] == 3 * reply.said.tokens_in


async def test_reasoning_is_a_first_token(gateways, asking):
    async with stuck_after(b'{"choices": [{"delta": {"reasoning_content": "hm "}}]}') as url:
        settings = "stream: always, timeouts: {first_token: 5, idle: 0.05}"
        gateway = gateways(f"providers: [{{name: gpu, type: openai, base_url: '{url}', {settings}}}]")
        with pytest.raises(ProviderUnavailable, match=r"nothing more came within 0.05 s \(timeouts\.idle"):
            await gateway.complete(asking(model="gpu/m"))


async def test_the_callers_time_ends_it_first(gateways, fake, asking):
    gateway = gateways(gpu(fake, "stream: always"))
    fake.answer = Reply("a b c", pause=asyncio.Event())
    with pytest.raises(DeadlineExceeded):
        await gateway.complete(asking("x" * 40, model="gpu/m", timeout=0.1))
    assert gateway.counts.tokens_given_up == {("gpu", "m", "input"): 10, ("gpu", "m", "output"): 1}
    await fake.eventually(lambda f: f.open == 0)


@pytest.mark.parametrize(
    ("setting", "params", "timeout", "to_caller", "streamed"),
    [
        ("auto", {}, 60.0, False, False),
        ("auto", {"max_tokens": 4096}, 60.0, False, False),
        ("auto", {"max_tokens": 4097}, 60.0, False, True),
        ("auto", {"max_completion_tokens": 9000}, 60.0, False, True),
        ("auto", {}, 121.0, False, True),
        ("auto", {}, 60.0, True, True),
        ("always", {}, 60.0, False, True),
        ("never", {"max_tokens": 9000}, 600.0, True, False),
    ],
)
async def test_the_setting_says_whether_an_answer_is_streamed(
    gateways, fake, asking, setting, params, timeout, to_caller, streamed
):
    request = asking(model="gpu/m", timeout=timeout, **params)
    assert streams(setting, request, to_caller=to_caller) is streamed
    fake.answer = "one two"
    pieces: list[str] = []
    answer = await gateways(gpu(fake, f"stream: {setting}")).complete(request, pieces.append if to_caller else None)
    assert (answer.output, "stream" in fake.requests[0].body) == ("one two", streamed)
    assert pieces == ([] if not to_caller else ["one ", "two"] if streamed else ["one two"])


@pytest.mark.parametrize("setting", ["always", "never"])
async def test_a_streamed_answer_is_as_one_that_came_at_once(gateways, fake, asking, setting):
    fake.answer = Reply("one two", tokens_in=7, tokens_out=3, message={"reasoning_content": "hm"})
    answer = await gateways(gpu(fake, f"stream: {setting}")).complete(asking(model="gpu/m"))
    assert (answer.output, answer.reasoning, answer.tokens_in, answer.tokens_out) == ("one two", "hm", 7, 3)
    assert (answer.ttft_ms is None) == (setting == "never")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"data: " + b"x" * (LONGEST_LINE + 1), "a line of the stream is longer than 1 MiB"),
        (b"data: {}\n" * (MOST_EVENTS + 1), "more than 200,000 events"),
        (b": ping\n" * 1_300_000, "larger than 8 MiB"),
    ],
)
async def test_a_stream_without_end_is_no_answer(gateways, fake, asking, line, said):
    gateway = gateways(gpu(fake, "stream: always"))
    fake.answer = Reply(body=line, headers={"content-type": "text/event-stream"})
    with pytest.raises(ProviderRejected, match=said):
        await gateway.complete(asking(model="gpu/m"))


async def test_a_provider_that_can_not_be_reached_is_given_up_after_its_connect_timeout(gateways, asking):
    """The listener's queue is full: the kernel drops what else comes."""
    async with unreachable() as url:
        gateway = gateways(f"providers: [{{name: far, type: openai, base_url: '{url}', timeouts: {{connect: 0.05}}}}]")
        with pytest.raises(CompletionFailed, match=r"cannot connect to http://127\.0\.0\.1"):
            await gateway.complete(asking(model="far/m"))


@asynccontextmanager
async def unreachable() -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            for each in waiting:
                each.close()


@asynccontextmanager
async def stuck_after(event: bytes) -> AsyncIterator[str]:
    """A server whose streams have this event, and no end."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: " + event + b"\n\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
