"""The mock provider: rules in order, counted per question."""

from __future__ import annotations

import asyncio

import pytest

from promptlooper.errors import ProviderRateLimited, ProviderRejected, ProviderUnavailable

SCRIPT = r"""
providers:
  - name: mock
    prices: {"*": {input_usd_per_mtok: 1, output_usd_per_mtok: 2}}
    script:
      - {model: strict, match: bad, error: {status: 400, message: no, code: context_length_exceeded}}
      - {match: flaky, error: {status: 503, times: 2}, text: steady now}
      - {match: limited, error: {status: 429, retry_after: 9}}
      - {match: dead, error: {status: 500}}
      - {match: "a.c", text: literal}
      - {regex: "capital of (\\w+)", text: 'I like \1'}
      - {match: long, text: one two three four}
      - {match: cut, text: half, finish_reason: length, tokens_in: 7, tokens_out: 9}
      - {match: slow, echo: true, delay: 0.001}
      - {model: other, text: from other}
"""


@pytest.fixture
def mock(gateways):
    return gateways(SCRIPT)


@pytest.mark.parametrize(
    ("model", "question", "output"),
    [
        ("mock/echo", "say this", "say this"),
        ("mock/ok", "say this", "ok"),
        ("mock/other", "anything", "from other"),
        ("mock/ok", "what is the capital of France?", "I like France"),
        ("mock/ok", "a.c", "literal"),
        ("mock/ok", "abc", "ok"),
        ("mock/ok", "slow one", "slow one"),
    ],
)
async def test_first_rule_that_fits_answers(mock, asking, model, question, output):
    assert (await mock.complete(asking(question, model=model))).output == output


async def test_built_in_models_need_no_file(gateways, asking):
    gateway = gateways()
    answer = await gateway.complete(asking("one two", model="mock/echo"))
    assert (answer.output, answer.tokens_in, answer.tokens_out, answer.cost_nanousd) == ("one two", 2, 2, 0)


async def test_words_are_tokens_and_cost_what_the_file_says(mock, asking):
    answer = await mock.complete(asking("a b c", model="mock/echo"))
    assert (answer.tokens_in, answer.tokens_out, answer.cost_nanousd) == (3, 3, 3 * 1000 + 3 * 2000)


async def test_rule_sets_reason_and_tokens(mock, asking):
    answer = await mock.complete(asking("cut", model="mock/ok"))
    assert (answer.finish_reason, answer.tokens_in, answer.tokens_out) == ("length", 7, 9)


async def test_max_tokens_cuts_the_answer(mock, asking):
    answer = await mock.complete(asking("long", model="mock/ok", max_tokens=2))
    assert (answer.output, answer.finish_reason, answer.tokens_out) == ("one two", "length", 2)


async def test_errors_are_counted_per_question_and_retried(mock, asking):
    questions = [f"flaky {n}" for n in range(5)]
    answers = await asyncio.gather(*(mock.complete(asking(q, model="mock/ok")) for q in questions))
    assert {(a.output, a.attempts) for a in answers} == {("steady now", 3)}


async def test_scripted_errors_are_those_of_a_provider(mock, asking):
    with pytest.raises(ProviderUnavailable) as dead:
        await mock.complete(asking("dead", model="mock/ok"))
    assert dead.value.attempts == 3
    with pytest.raises(ProviderRateLimited) as limited:
        await mock.complete(asking("limited", model="mock/ok"))
    assert limited.value.retry_after == 9


async def test_question_that_no_rule_fits_is_refused(gateways, asking):
    gateway = gateways("providers: [{name: mock, script: [{model: x, match: yes, text: yes}]}]")
    with pytest.raises(ProviderRejected, match="no rule of its script fits this question to model 'x'"):
        await gateway.complete(asking("no", model="mock/x"))


async def test_another_script_is_another_endpoint(gateways):
    async def endpoint(text: str) -> str:
        gateway = gateways(f"providers: [{{name: mock, script: [{{text: {text}}}]}}]")
        return (await gateway.check_models(["mock/ok"]))[0].endpoint

    assert await endpoint("one") == await endpoint("one") != await endpoint("two")
