"""Other models in a model's place, over the real wire: who answers, and what the answer says of it."""

from __future__ import annotations

import socket

import pytest

from promptlooper.completion import Price
from promptlooper.errors import (
    ContextTooLong,
    InvalidArgument,
    ProviderMalformed,
    ProviderRateLimited,
    ProviderRejected,
)
from promptlooper.testing.provider import FakeProvider, Reply, error


@pytest.fixture
def chain(fake):
    """Of a dead, a limited and a healthy provider; the last one is `fake`."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = taken.getsockname()[1]
    return f"""
providers:
  - name: dead
    type: openai
    base_url: http://127.0.0.1:{nobody}/v1
    prices: {{"*": {{input_usd_per_mtok: 100, output_usd_per_mtok: 100}}}}
    fallbacks: {{m: [limited/m, healthy/vendor/m2], "*": [mock/ok]}}
  - name: limited
    type: mock
    prices: {{"*": {{input_usd_per_mtok: 50, output_usd_per_mtok: 900}}}}
    script: [{{error: {{status: 429, retry_after: 30}}}}]
  - name: healthy
    type: openai
    base_url: {fake.base_url}
    prices: {{"*": {{input_usd_per_mtok: 1, output_usd_per_mtok: 2}}}}
"""


async def test_the_first_that_answers_is_named_and_paid_and_all_attempts_are_counted(gateways, chain, fake, asking):
    gateway = gateways(chain)
    fake.answer = Reply("Paris", tokens_in=1000, tokens_out=10)
    answer = await gateway.complete(asking(model="dead/m"))
    assert (answer.output, answer.model, answer.fallback) == ("Paris", "healthy/vendor/m2", True)
    assert answer.attempts == 5  # dead three times, limited once
    assert answer.cost_nanousd == 1_000_000 + 20_000
    assert fake.requests[0].model == "vendor/m2"
    again = await gateway.complete(asking(model="dead/m"))
    third = await gateway.complete(asking(model="dead/m"))
    assert (again.attempts, third.attempts) == (3, 1)  # two more failures open the breaker; who limits rests already
    assert gateway.counts.tokens["healthy", "vendor/m2", "input"] == 3000


async def test_the_ceiling_is_that_of_the_dearest_that_may_answer(gateways, chain):
    dead, healthy, other = await gateways(chain).check_models(["dead/m", "healthy/m", "dead/other"])
    assert dead.price == Price(100 * 10**9, 900 * 10**9)
    assert healthy.price == Price(10**9, 2 * 10**9)
    assert other.price == Price(100 * 10**9, 100 * 10**9)


async def test_what_is_wrong_with_the_question_is_not_asked_elsewhere(gateways, fake, asking):
    gateway = gateways(
        f"""
providers:
  - {{name: a, type: openai, base_url: "{fake.base_url}", fallbacks: {{"*": [mock/ok]}}}}
  - {{name: b, type: openai, base_url: "{fake.base_url}", context_window_fallbacks: {{"*": [mock/echo]}}}}
"""
    )
    fake.answer = error(400, "no such parameter")
    with pytest.raises(ProviderRejected):
        await gateway.complete(asking(model="a/m"))
    fake.answer = error(400, "too long", code="context_length_exceeded")
    with pytest.raises(ContextTooLong):
        await gateway.complete(asking(model="a/m"))
    answer = await gateway.complete(asking("a long one", model="b/m"))
    assert (answer.output, answer.model, answer.fallback, answer.attempts) == ("a long one", "mock/echo", True, 2)


async def test_nobody_else_goes_on_with_an_answer_that_has_begun(gateways, fake, asking):
    gateway = gateways(
        f"providers: [{{name: a, type: openai, base_url: '{fake.base_url}', fallbacks: {{'*': [mock/ok]}}}}]"
    )
    pieces: list[str] = []
    fake.answer = Reply("one two", finish_reason=None)
    with pytest.raises(ProviderMalformed):
        await gateway.complete(asking(model="a/m"), pieces.append)
    assert pieces == ["one ", "two"]
    fake.answer = error(503)
    pieces.clear()
    assert (await gateway.complete(asking(model="a/m"), pieces.append)).model == "mock/ok"
    assert pieces == ["ok"]


async def test_where_nobody_answers_the_last_one_says_why(gateways, fake, asking):
    gateway = gateways(
        f"""
providers:
  - {{name: a, type: openai, base_url: "{fake.base_url}", fallbacks: {{m: [mock/m]}}}}
  - {{name: mock, script: [{{error: {{status: 429, retry_after: 30, message: slow down}}}}]}}
"""
    )
    fake.answer = error(503)
    with pytest.raises(
        ProviderRateLimited, match=r"'mock' asks to wait .*slow down \(4 attempts were made\)"
    ) as caught:
        await gateway.complete(asking(model="a/m"))
    assert (caught.value.attempts, caught.value.retry_after) == (4, 30.0)


async def test_a_model_without_a_key_is_answered_by_its_fallback(gateways, asking):
    gateway = gateways("providers: [{name: openai, fallbacks: {gpt-4o: [mock/echo]}}]")
    answer = await gateway.complete(asking("hi", model="openai/gpt-4o"))
    assert (answer.output, answer.model, answer.attempts) == ("hi", "mock/echo", 1)
    (check,) = await gateway.check_models(["openai/gpt-4o"])
    assert check.problem is None


@pytest.mark.parametrize(
    ("name", "said"),
    [("opnai/m", "there is no provider 'opnai'; did you mean 'openai'"), ("vertex/m", "is not available yet")],
)
def test_a_fallback_that_nobody_serves_is_refused_at_the_start(gateways, name, said):
    with pytest.raises(InvalidArgument, match=f"provider 'openai': the fallback '{name}': .*{said}"):
        gateways(f"providers: [{{name: openai, fallbacks: {{m: [{name}]}}}}]")


async def test_two_providers_may_stand_in_for_each_other(gateways, asking, fake):
    async with FakeProvider("other") as other:
        gateway = gateways(
            f"""
providers:
  - {{name: a, type: openai, base_url: "{fake.base_url}", fallbacks: {{"*": [b/m]}}}}
  - {{name: b, type: openai, base_url: "{other.base_url}", fallbacks: {{"*": [a/m]}}}}
"""
        )
        fake.answer = other.answer = error(503)
        with pytest.raises(Exception, match="6 attempts were made"):
            await gateway.complete(asking(model="a/m"))
