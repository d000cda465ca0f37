"""The gateway over the real wire: bytes out; answers and every kind of failure in."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
import traceback

import pytest

from promptlooper.adapter.providers.transport import LARGEST_BODY
from promptlooper.errors import (
    CompletionFailed,
    ContextTooLong,
    DeadlineExceeded,
    ProviderCredentials,
    ProviderMalformed,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
)
from promptlooper.testing.provider import FakeProvider, ProviderRequest, Reply, error


async def test_request_holds_what_is_set_and_nothing_else(gateway, fake, asking, key):
    await gateway.complete(asking("hi", temperature=0, top_k=7))
    (request,) = fake.requests
    assert request.body == {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
        "top_k": 7,
    }
    assert request.headers["authorization"] == f"Bearer {key}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept-encoding"] == "identity"


async def test_answer_brings_text_model_reason_and_tokens(gateway, fake, asking):
    fake.answer = Reply(
        "Paris",
        finish_reason="length",
        message={"reasoning_content": "It is the capital."},
        usage={
            "prompt_tokens": 20,
            "completion_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 16},
            "completion_tokens_details": {"reasoning_tokens": 8},
        },
    )
    answer = await gateway.complete(asking(model="openai/gpt-5/preview"))
    assert (answer.output, answer.model, answer.finish_reason) == ("Paris", "gpt-5/preview", "length")
    assert (answer.tokens_in, answer.tokens_out, answer.tokens_cached_in, answer.tokens_reasoning) == (20, 9, 16, 8)
    assert (answer.reasoning, answer.attempts, answer.cost_nanousd) == ("It is the capital.", 1, None)


@pytest.mark.parametrize(
    ("reply", "output", "finish_reason"),
    [
        (Reply("", finish_reason="content_filter"), "", "content_filter"),
        (error(400, "filtered", code="content_filter"), "", "content_filter"),
        (Reply(finish_reason="function_call", message={"content": None}), "", "tool_calls"),
        (Reply(finish_reason="tired"), "ok", "other"),
        (Reply(message={"content": None, "refusal": "No."}), "No.", "stop"),
        (Reply(message={"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}), "ab", "stop"),
    ],
)
async def test_answers_in_other_shapes_are_understood(gateway, fake, asking, reply, output, finish_reason):
    fake.answer = reply
    answer = await gateway.complete(asking())
    assert (answer.output, answer.finish_reason) == (output, finish_reason)


async def test_answer_without_usage_has_no_token_counts(gateway, fake, asking):
    fake.answer = Reply(usage={})
    answer = await gateway.complete(asking())
    assert (answer.tokens_in, answer.tokens_out) == (None, None)


@pytest.mark.parametrize("count", [1e30, 2**63, 2**31, -1, 1.5, True, "7"])
async def test_count_that_no_answer_has_is_unknown(gateway, fake, asking, count):
    details = {"reasoning_tokens": count}
    fake.answer = Reply(usage={"prompt_tokens": count, "completion_tokens": 3, "completion_tokens_details": details})
    answer = await gateway.complete(asking())
    assert (answer.tokens_in, answer.tokens_out, answer.tokens_reasoning) == (None, 3, None)
    assert answer.cost_nanousd is None


@pytest.mark.parametrize("name", ["stream", "messages", "model"])
async def test_parameters_that_the_adapter_sets_are_refused(gateway, fake, asking, name):
    request = asking()
    request = type(request)(request.model, request.messages, {name: True})
    with pytest.raises(ProviderRejected, match=f"'{name}' is set by the Adapter"):
        await gateway.complete(request)
    assert not fake.requests


CASES = {
    "key refused": (error(401, "Incorrect API key provided", code="invalid_api_key"), ProviderCredentials, 1),
    "no credit": (error(429, "You exceeded your quota", code="insufficient_quota"), ProviderCredentials, 1),
    "rejected": (error(400, "temperature must be below 2"), ProviderRejected, 1),
    "unknown model": (error(404, "no such model", code="model_not_found"), ProviderRejected, 1),
    "too long": (error(400, "too long", code="context_length_exceeded"), ContextTooLong, 1),
    "server error": (error(500), ProviderUnavailable, 3),
    "overloaded": (error(529), ProviderUnavailable, 3),
    "html error": (Reply(status=502, body=b"<html>Bad gateway</html>"), ProviderUnavailable, 3),
    "error in 200": (Reply(body=b'{"error": {"code": 503, "message": "upstream is down"}}'), ProviderUnavailable, 3),
    "refusal in 200": (Reply(body=b'{"error": {"code": 400, "message": "bad"}}'), ProviderRejected, 1),
    "no json": (Reply(body=b"hello"), ProviderMalformed, 3),
    "no object": (Reply(body=b"[]"), ProviderMalformed, 3),
    "no choices": (Reply(body=b'{"choices": []}'), ProviderMalformed, 3),
    "no message": (Reply(body=b'{"choices": [{}]}'), ProviderMalformed, 3),
    "no finish reason": (Reply(finish_reason=None), ProviderMalformed, 3),
    "broken off": (Reply(finish_reason="error"), ProviderUnavailable, 3),
    "compressed": (Reply(body=gzip.compress(b"{}"), headers={"content-encoding": "gzip"}), ProviderMalformed, 3),
    "cut": (Reply(cut=True), ProviderUnavailable, 3),
    "dropped": (Reply(drop=True), ProviderUnavailable, 3),
    "redirect": (Reply(status=307, body=b"", headers={"location": "http://elsewhere.test/"}), ProviderRejected, 1),
    "too large": (Reply(body=b" " * (LARGEST_BODY + 1)), ProviderRejected, 1),
}


@pytest.mark.parametrize("case", CASES)
async def test_each_failure_has_its_error_and_its_number_of_attempts(gateway, fake, asking, case):
    reply, cls, attempts = CASES[case]
    fake.answer = reply
    with pytest.raises(CompletionFailed) as caught:
        await gateway.complete(asking())
    assert type(caught.value) is cls
    assert caught.value.attempts == attempts == len(fake.requests)
    assert caught.value.metadata["provider"] == "openai"
    assert "'openai'" in str(caught.value)


async def test_provider_that_is_not_there_is_named_with_its_address(gateways, asking):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    gateway = gateways(OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1")
    with pytest.raises(
        ProviderUnavailable, match=f"cannot connect to http://127.0.0.1:{port}/v1 .Connection refused"
    ) as caught:
        await gateway.complete(asking())
    assert caught.value.attempts == 3


async def test_what_is_not_http_is_malformed(gateways, asking):
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 smtp.example.test ready\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    async with server:
        gateway = gateways(OPENAI_BASE_URL=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(ProviderMalformed):
            await gateway.complete(asking())


async def test_transient_failure_is_tried_again_and_counted(gateway, fake, asking, time):
    fake.script.extend([error(503), Reply(drop=True), "third time"])
    answer = await gateway.complete(asking())
    assert (answer.output, answer.attempts) == ("third time", 3)
    assert time.slept == [pytest.approx(0.25), pytest.approx(0.5)]


async def test_retry_after_is_waited_for(gateway, fake, asking, time):
    fake.script.extend(
        [
            error(429, retry_after="2"),
            error(429, retry_after="Mon, 23 Nov 2026 12:00:05 GMT"),
            error(429, retry_after="1"),
        ]
    )
    answer = await gateway.complete(asking())
    assert answer.attempts == 4
    # 5 % is our spread; at the second attempt 2.1 of the 5 s are over.
    assert time.slept == [pytest.approx(2.1), pytest.approx(2.9 * 1.05), pytest.approx(1.05)]


async def test_longer_waits_are_left_to_the_caller(gateway, fake, asking, time):
    fake.answer = error(429, "slow down", retry_after="6")
    with pytest.raises(ProviderRateLimited, match="slow down") as caught:
        await gateway.complete(asking())
    assert (caught.value.retry_after, caught.value.attempts, time.slept) == (6.0, 1, [])


async def test_rate_limit_that_outlasts_the_deadline_is_left_to_the_caller(gateway, fake, asking, time):
    fake.answer = error(429, retry_after="4")
    with pytest.raises(ProviderRateLimited) as caught:
        await gateway.complete(asking(timeout=10))
    assert (caught.value.retry_after, caught.value.attempts, len(time.slept)) == (4.0, 3, 2)


async def test_deadline_ends_a_call_that_hangs_and_closes_its_connection(gateway, fake, asking):
    fake.answer = Reply(until=asyncio.Event())
    with pytest.raises(DeadlineExceeded, match=r"within 0.05 s \(1 request was made\)") as caught:
        await gateway.complete(asking(timeout=0.05))
    assert (caught.value.attempts, caught.value.retryable) == (1, True)
    await fake.eventually(lambda f: f.hung_up == 1)


async def test_cancelled_calls_close_their_requests_and_leak_no_slot(gateways, fake, asking):
    providers = f"""
providers:
  - {{name: few, type: openai, base_url: "{fake.base_url}", limits: {{max_concurrency: 5}}}}
"""
    gateway = gateways(providers)
    fake.answer = Reply(until=asyncio.Event())
    for _ in range(20):
        gone = fake.hung_up
        calls = [asyncio.create_task(gateway.complete(asking(model="few/m"))) for _ in range(5)]
        await fake.eventually(lambda f: f.open == 5)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert all(call.cancelled() for call in calls)
        await fake.eventually(lambda f, gone=gone: f.hung_up == gone + 5 and f.open == 0)
    assert fake.hung_up == 100
    fake.answer = "fine"
    answers = await asyncio.gather(*(gateway.complete(asking(model="few/m")) for _ in range(100)))
    assert {(answer.output, answer.attempts) for answer in answers} == {("fine", 1)}
    assert fake.most_open == 5


async def test_call_cancelled_while_it_waits_for_a_slot_makes_no_request(gateways, fake, asking):
    gateway = gateways(
        f"providers: [{{name: one, type: openai, base_url: '{fake.base_url}', limits: {{max_concurrency: 1}}}}]"
    )
    release = asyncio.Event()
    fake.answer = Reply(until=release)
    first = asyncio.create_task(gateway.complete(asking("first", model="one/m")))
    await fake.eventually(lambda f: f.open == 1)
    second = asyncio.create_task(gateway.complete(asking("second", model="one/m")))
    third = asyncio.create_task(gateway.complete(asking("third", model="one/m")))
    await asyncio.sleep(0)
    second.cancel()
    release.set()
    await asyncio.gather(first, third)
    assert dict(fake.calls) == {"first": 1, "third": 1}


async def test_five_hundred_calls_run_at_once(many_files, gateways, fake, asking):
    gateway = gateways("providers: [{name: openai, limits: {max_concurrency: 500}}]", OPENAI_BASE_URL=fake.base_url)
    release = asyncio.Event()
    fake.answer = Reply(until=release)
    calls = [asyncio.create_task(gateway.complete(asking(str(n)))) for n in range(500)]
    await fake.eventually(lambda f: f.open == 500)
    release.set()
    assert {answer.output for answer in await asyncio.gather(*calls)} == {"ok"}
    assert len(fake.calls) == 500


async def test_slot_is_free_while_a_retry_waits(gateways, fake, asking):
    gateway = gateways(
        f"providers: [{{name: one, type: openai, base_url: '{fake.base_url}', limits: {{max_concurrency: 1}}}}]"
    )

    def answer(request: ProviderRequest) -> Reply:
        failed_once = fake.calls["first"] > 1
        return Reply("ok") if request.question == "second" or failed_once else error(503)

    fake.answer = answer
    answered_meanwhile = []

    async def ask_meanwhile(seconds: float) -> None:
        answered_meanwhile.append(await gateway.complete(asking("second", model="one/m")))

    gateway._sleep = ask_meanwhile
    first = await gateway.complete(asking("first", model="one/m"))
    assert first.attempts == 2
    assert len(answered_meanwhile) == 1


@pytest.mark.parametrize(
    "reply",
    [
        lambda r: error(401, f"Incorrect API key provided: {r.headers['authorization'].split()[1]}"),
        lambda r: error(400, f"headers were {dict(r.headers)}"),
        lambda r: Reply(status=500, body=f"Authorization: {r.headers['authorization']}".encode()),
        lambda r: Reply(status=307, headers={"location": f"/?key={r.headers['authorization'].split()[1]}"}),
        lambda r: Reply(drop=True),
        lambda r: Reply(body=b"nonsense"),
    ],
)
async def test_key_is_in_no_error_and_no_log(gateway, fake, asking, key, reply, caplog):
    caplog.set_level(logging.DEBUG)
    fake.answer = reply
    with pytest.raises(CompletionFailed) as caught:
        await gateway.complete(asking())
    told = (
        "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(vars(caught.value)) + caplog.text
    )
    assert key not in told
    assert "canary" not in told
    assert key not in repr(vars(gateway)) + repr(await gateway.check_models(["openai/x"]))


async def test_provider_that_was_asked_is_not_sent_anothers_key(gateways, fake, asking, key):
    gateway = gateways(f"providers: [{{name: mine, type: openai, base_url: '{fake.base_url}'}}]", OPENAI_API_KEY=key)
    await gateway.complete(asking(model="mine/m"))
    assert "authorization" not in fake.requests[0].headers


async def test_long_messages_of_a_provider_are_shortened(gateway, fake, asking):
    fake.answer = error(400, "no " * 1000)
    with pytest.raises(ProviderRejected) as caught:
        await gateway.complete(asking())
    assert len(str(caught.value)) < 400


async def test_two_gateways_do_not_share_connections_or_fates(gateways, fake, asking):
    async with FakeProvider("other") as other:
        one, two = gateways(OPENAI_BASE_URL=fake.base_url), gateways(OPENAI_BASE_URL=other.base_url)
        await one.complete(asking())
        await one.aclose()
        assert (await two.complete(asking())).output == "other"
