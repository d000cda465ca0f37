"""The fake provider itself: what tests of ours and of users stand on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from promptlooper.testing.provider import FakeProvider, ProviderRequest, Reply, error


@pytest.fixture
async def ask(fake):
    async with aiohttp.ClientSession() as session:

        async def ask(question: str, *, timeout: float = 10.0) -> tuple[int, Any, dict]:
            body = {
                "model": "m",
                "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": question}],
            }
            limit = aiohttp.ClientTimeout(total=timeout)
            async with session.post(f"{fake.base_url}/chat/completions", json=body, timeout=limit) as response:
                return response.status, response.headers, json.loads(await response.read())

        yield ask


async def test_it_answers_in_the_openai_format(fake, ask):
    fake.answer = Reply("Paris it is", message={"reasoning_content": "hm"})
    status, _, body = await ask("hi there")
    assert status == 200
    assert body["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "Paris it is", "reasoning_content": "hm"},
        "finish_reason": "stop",
    }
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}


async def test_script_goes_before_the_answer(fake, ask):
    fake.answer = lambda request: request.question.upper()
    fake.script.extend(["first", error(429, "slow down", code="rate_limit_exceeded", retry_after="3")])
    assert (await ask("a"))[2]["choices"][0]["message"]["content"] == "first"
    status, headers, body = await ask("b")
    assert (status, headers["retry-after"]) == (429, "3")
    assert body["error"] == {"message": "slow down", "type": "error", "code": "rate_limit_exceeded"}
    assert (await ask("c"))[2]["choices"][0]["message"]["content"] == "C"


async def test_answer_may_be_a_coroutine_function(fake, ask):
    async def answer(request: ProviderRequest) -> str:
        return f"{request.model} {len(fake.requests)}"

    fake.answer = answer
    assert (await ask("a"))[2]["choices"][0]["message"]["content"] == "m 1"


async def test_it_counts_questions_and_open_requests(fake, ask):
    release = asyncio.Event()
    fake.answer = Reply(until=release)
    calls = [asyncio.create_task(ask(question)) for question in "aab"]
    await fake.eventually(lambda f: f.open == 3)
    release.set()
    await asyncio.gather(*calls)
    await fake.eventually(lambda f: f.open == 0)
    assert (dict(fake.calls), fake.most_open, fake.hung_up) == ({"a": 2, "b": 1}, 3, 0)


async def test_it_counts_clients_that_hang_up(fake, ask):
    fake.answer = Reply(until=asyncio.Event())
    call = asyncio.create_task(ask("a"))
    await fake.eventually(lambda f: f.open == 1)
    call.cancel()
    await fake.eventually(lambda f: f.hung_up == 1)


@pytest.mark.parametrize("reply", [Reply(cut=True), Reply(drop=True)])
async def test_it_breaks_connections_on_demand(fake, ask, reply):
    fake.answer = reply
    with pytest.raises(aiohttp.ClientError):
        await ask("a")
    await fake.eventually(lambda f: f.open == 0)
    assert fake.hung_up == 0


async def test_it_can_come_back_on_its_port():
    async with FakeProvider() as first:
        port = int(first.base_url.rsplit(":", 1)[1].split("/")[0])
    async with FakeProvider(port=port) as second:
        assert second.base_url == first.base_url


async def test_it_knows_when_each_question_came_and_was_answered(fake, ask):
    release = asyncio.Event()
    fake.script.extend(["now", Reply(until=release)])
    await ask("a")
    open_call = asyncio.create_task(ask("b"))
    await fake.eventually(lambda f: f.open == 1)
    first, second = fake.history
    assert (first.question, second.question) == ("a", "b")
    assert first.started <= first.answered <= second.started
    assert second.answered is None
    release.set()
    await open_call
    assert second.answered >= second.started
