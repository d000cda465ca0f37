"""Batches in OpenAI's form, over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from promptlooper.adapter.batch import core
from promptlooper.adapter.cost import Dated, Prices
from promptlooper.adapter.gateway import Gateway
from promptlooper.adapter.tariff import Rate, Tariff, in_batch
from promptlooper.batches import BatchItem, BatchState
from promptlooper.completion import Completion, Price
from promptlooper.errors import (
    BatchExpired,
    DeadlineExceeded,
    InvalidArgument,
    ProviderCredentials,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
    TooLarge,
)
from promptlooper.testing.wires import Asked, Reply, Said
from promptlooper.testing.wires.openai_batches import OpenAIBatchServer
from promptlooper.testing.wires.openai_responses import OpenAIResponsesWire

MODEL = "openai/gpt-4o"
PRICES = "{input_usd_per_mtok: 8, output_usd_per_mtok: 9, batch: {input_usd_per_mtok: 2, output_usd_per_mtok: 3}}"
PROVIDERS = """
providers:
  - {{name: openai, type: {type}, base_url: "{url}", api_key_env: THE_KEY{more}}}
"""
QUIRKS = f", quirks: openai, prices: {{gpt-4o: {PRICES}}}"


def echo(asked: Asked) -> Said:
    return Said(f"about {asked.body['messages'][-1]['content']}", tokens_in=1000, tokens_out=100)


@pytest.fixture
async def server() -> AsyncIterator[OpenAIBatchServer]:
    async with OpenAIBatchServer(echo, hold=True) as server:
        yield server


@pytest.fixture
def batching(gateways, server, key) -> Gateway:
    return gateways(PROVIDERS.format(type="openai", url=server.base_url, more=QUIRKS), THE_KEY=key)


@pytest.fixture
def items(asking):
    def make(count: int = 3, **params) -> list[BatchItem]:
        return [BatchItem(f"q-{n}", asking(f"question {n}", model=MODEL, **params)) for n in range(count)]

    return make


async def results(gateway, batch: str) -> dict[str, object]:
    return {each.item_id: each.completion or each.error async for each in gateway.batch_results(batch)}


async def test_a_batch_is_submitted_polled_and_read_at_the_batch_price(batching, server, items):
    submitted = await batching.submit_batch(MODEL, "batch-1", items(max_tokens=50))
    assert (await batching.batch_status(submitted.batch)).state is BatchState.RUNNING
    with pytest.raises(InvalidArgument, match="has not ended"):
        await results(batching, submitted.batch)
    server.finish()
    status = await batching.batch_status(submitted.batch)
    assert (status.state, status.total, status.answered, status.failed) == (BatchState.ENDED, 3, 3, 0)
    assert status.expires_at is not None
    found = await results(batching, submitted.batch)
    assert found.keys() == {"q-0", "q-1", "q-2"}
    answer = found["q-1"]
    assert (answer.output, answer.finish_reason, answer.attempts, answer.latency_ms) == (
        "about question 1",
        "stop",
        1,
        0,
    )
    assert (answer.cost_nanousd, answer.price_version) == (1000 * 2000 + 100 * 3000, "providers-file")
    assert server.asked[0].body["max_completion_tokens"] == 50
    assert await results(batching, submitted.batch) == found
    assert not server.refused


async def test_another_adapter_knows_the_batch_and_its_handle_holds_no_secret(gateways, batching, server, items, key):
    submitted = await batching.submit_batch(MODEL, "batch-1", items())
    server.finish()
    providers = PROVIDERS.format(type="openai", url=server.base_url, more=QUIRKS)
    assert len(await results(gateways(providers, THE_KEY="sk-another-value"), submitted.batch)) == 3
    assert key not in submitted.batch
    assert server.base_url not in submitted.batch


async def test_failed_expired_and_refused_items_say_why(batching, server, items):
    failing = {"question 1": Reply(status=400, message="no such thing"), "question 2": Reply(status=429)}
    server.answer = lambda asked: failing.get(asked.body["messages"][-1]["content"]) or echo(asked)
    asked = [*items(5), BatchItem("q-5", replace(items(1)[0].request, params={"top_k": 3}))]
    submitted = await batching.submit_batch(MODEL, "batch-1", asked)
    assert [each.item_id for each in submitted.refused] == ["q-5"]
    assert isinstance(submitted.refused[0].error, ProviderRejected)
    server.finish(end="expired", answered=3)
    found = await results(batching, submitted.batch)
    kinds = [type(found[f"q-{n}"]) for n in range(1, 5)]
    assert kinds == [ProviderRejected, ProviderRateLimited, BatchExpired, BatchExpired]
    assert "no such thing" in str(found["q-1"])


async def test_a_batch_without_an_item_is_not_submitted(batching, server, items):
    submitted = await batching.submit_batch(MODEL, "batch-1", items(2, top_k=1))
    assert (submitted.batch, len(submitted.refused)) == ("", 2)
    assert not server.files


async def test_a_batch_that_failed_as_a_whole_says_why_and_has_no_results(batching, server, items):
    submitted = await batching.submit_batch(MODEL, "batch-1", items(2))
    server.batches[-1].message = "the file can't be read, sk-canary-0123456789abcdef"
    server.finish(end="failed")
    status = await batching.batch_status(submitted.batch)
    assert (status.state, status.message) == (BatchState.ENDED, "the file can't be read, ***")
    assert not status.too_much
    server.batches[-1].code = "token_limit_exceeded"
    assert (await batching.batch_status(submitted.batch)).too_much
    assert await results(batching, submitted.batch) == {}


async def test_again_finds_the_batch_of_the_label_on_whatever_page(batching, server, items):
    first = await batching.submit_batch(MODEL, "batch-1", items(1))
    for n in range(120):
        server.take(f"other-{n}", {})
    assert await batching.submit_batch(MODEL, "batch-1", items(1), again=True) == first
    assert len(server.batches) == 121
    anew = await batching.submit_batch(MODEL, "batch-2", items(1), again=True)
    assert anew.batch != first.batch
    assert len(server.batches) == 122


async def test_a_cancelled_batch_keeps_what_was_answered(batching, server, items):
    submitted = await batching.submit_batch(MODEL, "batch-1", items(3))
    await batching.cancel_batch(submitted.batch)
    assert (await batching.batch_status(submitted.batch)).state is BatchState.CANCELLING
    await batching.cancel_batch(submitted.batch)
    server.finish(end="cancelled", answered=1)
    await batching.cancel_batch(submitted.batch)
    found = await results(batching, submitted.batch)
    assert [getattr(each, "reason", "ok") for each in found.values()] == ["ok", "BATCH_CANCELLED", "BATCH_CANCELLED"]
    assert not server.refused


async def test_a_batch_that_the_provider_forgot_is_unknown(batching, server, items):
    submitted = await batching.submit_batch(MODEL, "batch-1", items(1))
    server.forget()
    assert (await batching.batch_status(submitted.batch)).state is BatchState.UNKNOWN
    await batching.cancel_batch(submitted.batch)
    with pytest.raises(ProviderRejected, match="does not know the batch"):
        await results(batching, submitted.batch)


async def test_status_is_asked_again_and_submission_only_where_it_was_not_taken(batching, server, items, time):
    server.failing = [Reply(status=429, headers={"retry-after": "2"})]
    submitted = await batching.submit_batch(MODEL, "batch-1", items(1))
    assert len(time.slept) == 1
    assert 2 <= time.slept[0] <= 2.2
    server.failing = [Reply(status=503), Reply(status=500)]
    assert (await batching.batch_status(submitted.batch)).state is BatchState.RUNNING
    server.failing = [Reply(status=500)]
    with pytest.raises(ProviderUnavailable):
        await batching.submit_batch(MODEL, "batch-2", items(1))
    assert len(server.batches) == 1


async def test_a_batch_of_an_address_that_is_not_configured_any_more_says_so(gateways, batching, server, items, key):
    submitted = await batching.submit_batch(MODEL, "batch-1", items(1))
    moved = gateways(PROVIDERS.format(type="openai", url="http://127.0.0.1:1/v1", more=QUIRKS), THE_KEY=key)
    with pytest.raises(ProviderCredentials, match="put it back"):
        await moved.batch_status(submitted.batch)


@pytest.mark.parametrize("batch_id", ["..", "../files", "a/b", "a%2F..%2Fb", "", "a?b", "a b", "batches/.."])
async def test_a_handle_names_nothing_but_a_batch(batching, server, items, batch_id):
    submitted = await batching.submit_batch(MODEL, "batch-1", items(1))
    for handle in ("openai/batch_1", submitted.batch.replace("batch_1", batch_id)):
        with pytest.raises(InvalidArgument, match="names no batch"):
            await batching.batch_status(handle)


async def test_a_provider_that_falls_silent_is_not_waited_for_for_ever(batching, server, items, monkeypatch):
    submitted = await batching.submit_batch(MODEL, "batch-1", items(1))
    server.finish()
    monkeypatch.setattr(core, "SILENCE", 0.05)
    server.failing = [None, None, Reply(body=b"", then="hang")]
    with pytest.raises(DeadlineExceeded, match=r"within 0.05 s"):
        await results(batching, submitted.batch)
    monkeypatch.setattr(core, "TIMEOUT", 0.05)
    server.failing = [Reply(body=b"{", then="hang")]
    with pytest.raises(DeadlineExceeded, match=r"within 0.05 s"):
        await batching.batch_status(submitted.batch)


@pytest.mark.parametrize("entry", ["name: other, type: openai", "name: mine, type: ollama"])
async def test_an_endpoint_that_answers_no_batches_says_so_before_anything_is_sent(gateways, server, items, entry):
    gateway = gateways(f"providers:\n  - {{{entry}, base_url: '{server.base_url}'}}\n")
    model = f"{entry.split(',')[0].split()[1]}/m"
    checks = await gateway.check_models([model])
    assert not checks[0].batches
    assert checks[0].batch_price is None
    item = items(1)[0]
    with pytest.raises(ProviderRejected, match="answers no batches"):
        await gateway.submit_batch(model, "b", [replace(item, request=replace(item.request, model=model))])


async def test_check_models_says_what_a_batch_costs(batching):
    check = (await batching.check_models([MODEL]))[0]
    assert (check.batches, check.batch_price, check.list_price) == (
        True,
        Price(2 * 10**9, 3 * 10**9),
        Price(8 * 10**9, 9 * 10**9),
    )


@pytest.mark.parametrize(
    ("address", "model", "halved"),
    [
        ("https://api.openai.com/v1", "gpt-4o", 2_500 * 1000 + 10_000 * 100),
        ("https://api.anthropic.com", "claude-sonnet-4-5", 3_000 * 1000 + 15_000 * 100),
        ("https://generativelanguage.googleapis.com", "gemini-2.5-flash", 300 * 1000 + 2_500 * 100),
    ],
)
def test_the_public_list_halves_the_price_of_batches(address, model, halved):
    completion = Completion("ok", model, "stop", tokens_in=1000, tokens_out=100)
    prices = Prices({}, address)
    assert prices.cost(model, completion).nanousd == halved
    assert prices.cost(model, in_batch(completion)).nanousd == halved / 2


def test_without_a_batchs_price_on_the_list_its_cost_is_unknown_and_the_operators_price_holds():
    completion = Completion("ok", "m", "stop", tokens_in=1000, tokens_out=100)
    tariff = Tariff(Rate(10**15), Rate(10**15))
    assert Prices({}, "https://api.openai.com/v1").cost("gpt-3.5-turbo-instruct", in_batch(completion)).nanousd is None
    assert Prices({"m": (Dated(tariff),)}).cost("m", in_batch(completion)).nanousd == 1100 * 1000


async def test_a_batch_stays_with_its_key_and_is_looked_for_at_every_key(gateways, server, items):
    keys = "keys: [{name: one, api_key_env: ONE}, {name: two, api_key_env: TWO, weight: 3}]"
    entry = f"{{name: openai, type: openai, quirks: openai, base_url: '{server.base_url}', {keys}}}"
    gateway = gateways(f"providers: [{entry}]", ONE="sk-first-key", TWO="sk-second-key")
    submitted = [
        await gateway.submit_batch(MODEL, f"b-{n}", items(1)) for n in range(60)
    ]  # one in 10^7 uses but one key
    used = [call.headers["authorization"] for call in server.calls if call.path.endswith("/batches")]
    assert set(used) == {"Bearer sk-first-key", "Bearer sk-second-key"}
    server.calls.clear()
    for each in submitted:
        await gateway.batch_status(each.batch)
    assert [call.headers["authorization"] for call in server.calls] == used
    server.calls.clear()
    await gateway.submit_batch(MODEL, "b-new", items(1), again=True)
    looked = [call.headers["authorization"] for call in server.calls if "?limit" in call.path]
    assert looked == ["Bearer sk-first-key", "Bearer sk-second-key"]


async def test_responses_have_batches_too(gateways, items, key):
    async with OpenAIBatchServer(Said("by responses"), wire=OpenAIResponsesWire()) as server:
        gateway = gateways(PROVIDERS.format(type="openai-responses", url=server.base_url, more=""), THE_KEY=key)
        submitted = await gateway.submit_batch(MODEL, "batch-1", items(2))
        found = await results(gateway, submitted.batch)
    assert [each.output for each in found.values()] == ["by responses"] * 2
    assert not server.refused


async def test_what_is_no_batch_is_refused(batching, items):
    one, two = items(2)
    wrong = [
        ("B", [one], "label"),
        ("b", [], "1 to 50000 items"),
        ("b", [one, replace(two, item_id="q-0")], "two items"),
        ("b", [replace(one, item_id="a b")], "item_id"),
        ("b", [replace(one, request=replace(one.request, model="openai/other"))], "make a batch for each"),
    ]
    for label, batch, words in wrong:
        with pytest.raises(InvalidArgument, match=words):
            await batching.submit_batch(MODEL, label, batch)


async def test_a_batch_that_is_too_large_is_refused(batching, server, asking):
    large = [BatchItem(f"q-{n}", asking("x" * 2**24, model=MODEL)) for n in range(7)]
    with pytest.raises(TooLarge, match="100 MiB"):
        await batching.submit_batch(MODEL, "b", large)
    assert not server.files
