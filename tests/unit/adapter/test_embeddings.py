"""Texts as vectors, from servers that refuse what the real ones refuse."""

from __future__ import annotations

import math
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from promptlooper.embeddings import EmbeddingRequest, Embeddings
from promptlooper.errors import (
    CompletionFailed,
    DeadlineExceeded,
    InvalidArgument,
    ProviderRejected,
    TooLarge,
    UnknownProvider,
)
from promptlooper.testing.wires import Reply, Said, Wire, WireServer
from promptlooper.testing.wires.azure import AzureWire
from promptlooper.testing.wires.embeddings import numbers_of
from promptlooper.testing.wires.gemini import GeminiWire
from promptlooper.testing.wires.ollama import OllamaWire
from promptlooper.testing.wires.openai_chat import OpenAIChatWire


@dataclass(frozen=True, slots=True)
class Dialect:
    title: str
    wire: Wire
    vectors: str  # the answer's list
    at_once: int
    settings: str = ""
    type: str = ""


DIALECTS = (
    Dialect("OpenAI", OpenAIChatWire(), "data", 256, ", quirks: openai"),
    Dialect("Responses", OpenAIChatWire(), "data", 64, type="openai-responses"),
    Dialect("compatible", OpenAIChatWire(), "data", 64),
    Dialect("Azure", AzureWire(), "data", 256, ", api_version: 2024-10-21"),
    Dialect("Gemini", GeminiWire(), "embeddings", 100),
    Dialect("Ollama", OllamaWire(), "embeddings", 64),
)
TEXTS = ("a", "b €", "c")


@pytest.fixture(params=DIALECTS, ids=lambda dialect: dialect.title)
def dialect(request: Any) -> Dialect:
    return request.param


@pytest.fixture
async def server(dialect: Dialect) -> AsyncIterator[WireServer]:
    async with WireServer(dialect.wire) as server:
        yield server


@pytest.fixture
def gateway(gateways: Any, dialect: Dialect, server: WireServer, key: str) -> Any:
    kind = dialect.type or dialect.wire.type
    entry = f"name: p, type: {kind}, base_url: '{server.base_url}', api_key_env: KEY{dialect.settings}"
    return gateways(f"providers: [{{{entry}, prices: {{m: {{input_usd_per_mtok: 2}}}}}}]", KEY=key)


@pytest.fixture
async def openai(gateways: Any, key: str) -> AsyncIterator[tuple[Any, WireServer]]:
    async with WireServer(OpenAIChatWire()) as server:
        yield gateways(OPENAI_BASE_URL=server.base_url, OPENAI_API_KEY=key), server


def asked(*texts: str, model: str = "p/m", **more: Any) -> EmbeddingRequest:
    return EmbeddingRequest(model, texts or TEXTS, **more)


def vectors(*texts: str, dimensions: int | None = None) -> tuple[array[float], ...]:
    return tuple(array("f", numbers_of(text, dimensions)) for text in texts)


async def test_every_text_has_its_vector_and_all_their_price(gateway, server):
    found = await gateway.embed(asked())
    assert found.vectors == vectors(*TEXTS)
    assert (found.model, found.tokens_in, found.cost_nanousd, found.attempts) == ("m", 12, 24_000, 1)
    assert found.price_version == "providers-file"
    assert server.refused == []
    assert gateway.counts.embeddings == {("p", "ok"): 1}
    assert gateway.counts.tokens["p", "m", "input"] == 12


async def test_dimensions_are_asked_for(gateway, server):
    assert (await gateway.embed(asked(dimensions=3))).vectors == vectors(*TEXTS, dimensions=3)
    assert server.refused == []


async def test_more_texts_than_one_request_takes_go_in_several(gateway, server, dialect):
    texts = [f"text {number}" for number in range(dialect.at_once + 5)]
    found = await gateway.embed(asked(*texts))
    assert found.vectors == vectors(*texts)
    assert (found.tokens_in, found.cost_nanousd, found.attempts) == (24, 48_000, 2)
    assert (len(server.asked), server.refused) == (2, [])


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(status=400), "PROVIDER_REJECTED"),
        (Reply(status=401), "PROVIDER_CREDENTIALS"),
        (Reply(status=404), "PROVIDER_REJECTED"),
        (Reply(status=429, headers={"retry-after": "7"}), "PROVIDER_RATE_LIMITED"),
        (Reply(status=500), "PROVIDER_UNAVAILABLE, again"),
        (Reply(body=b'{"oops": '), "PROVIDER_MALFORMED, again"),
        (Reply(body=b"{}"), "PROVIDER_MALFORMED, again"),
        (Reply(upto=lambda body: len(body) // 2), "PROVIDER_MALFORMED, again"),
        (Reply(upto=lambda body: len(body) // 2, then="drop"), "PROVIDER_UNAVAILABLE, again"),
        (Reply(body=b'{"error": {"message": "lost", "code": 503}}'), "PROVIDER_UNAVAILABLE, again"),
    ],
    ids=["400", "401", "404", "429", "500", "no JSON", "no vectors", "cut off", "dropped", "error in a 200"],
)
async def test_errors_are_of_the_same_kinds_as_those_of_completions(gateway, server, key, reply, reason):
    server.answer = reply
    with pytest.raises(CompletionFailed) as caught:
        await gateway.embed(asked())
    error = caught.value
    assert error.reason + (", again" if error.attempts > 1 else "") == reason
    assert error.retry_after == (7.0 if reply.status == 429 else None)
    assert key not in str(error)
    assert gateway.counts.embeddings == {("p", error.reason): 1}


def _less(items: list[Any]) -> list[Any]:
    return items[1:]


def _shorter(items: list[Any]) -> list[Any]:
    return [*items[:-1], _with(items[-1], [0.5])]


def _without_numbers(items: list[Any]) -> list[Any]:
    return [*items[:-1], _with(items[-1], ["x"] * 8)]


def _endless(items: list[Any]) -> list[Any]:
    return [*items[:-1], _with(items[-1], [1e39] * 8)]


def _with(item: Any, numbers: list[Any]) -> Any:
    if not isinstance(item, dict):
        return numbers
    return {**item, "values" if "values" in item else "embedding": numbers}


@pytest.mark.parametrize("wrong", [_less, _shorter, _without_numbers, _endless])
async def test_answer_that_is_not_a_vector_for_each_text_is_asked_for_again(gateway, server, dialect, wrong):
    await gateway.embed(asked())
    answer = orjson.loads(dialect.wire.whole(server.asked[0], Said()))
    answer[dialect.vectors] = wrong(answer[dialect.vectors])
    server.script.append(Reply(body=orjson.dumps(answer)))
    found = await gateway.embed(asked())
    assert (found.vectors, found.attempts) == (vectors(*TEXTS), 2)


async def test_vectors_that_do_not_say_whose_they_are_are_not_taken(openai):
    gateway, server = openai
    for index in (0, None, [], 7):
        items = [{"index": index, "embedding": [0.5]} for _ in range(2)]
        server.script.append(Reply(body=orjson.dumps({"data": items})))
        assert (await gateway.embed(asked("a", "b", model="openai/m"))).attempts == 2


async def test_other_length_than_asked_for_is_refused_not_passed_on(openai):
    gateway, server = openai
    server.answer = Reply(body=orjson.dumps({"data": [{"index": 0, "embedding": [0.5] * 8}]}))
    with pytest.raises(ProviderRejected, match="its vectors have 8 numbers, whatever was asked for"):
        await gateway.embed(asked("a", model="openai/m", dimensions=4))


async def test_parameters_go_to_their_place_and_ours_are_refused(gateway, server, dialect):
    own, sent = {
        "gemini": ({"taskType": "RETRIEVAL_QUERY"}, lambda body: body["requests"][2]["taskType"] == "RETRIEVAL_QUERY"),
        "ollama": ({"num_ctx": 512, "keep_alive": "1m"}, lambda body: body["options"] == {"num_ctx": 512}),
    }.get(dialect.wire.type, ({"user": "u"}, lambda body: body["user"] == "u"))
    await gateway.embed(asked(params=own))
    assert sent(server.asked[0].body)
    assert server.refused == []
    with pytest.raises(ProviderRejected, match="'dimensions' is set by the Adapter itself"):
        await gateway.embed(asked(params={"dimensions": 3}))
    assert len(server.asked) == 1


async def test_ollama_is_told_to_cut_nothing_off_and_what_it_would_ignore_is_refused(gateways, key):
    async with WireServer(OllamaWire()) as server:
        gateway = gateways(OLLAMA_HOST=server.base_url)
        await gateway.embed(asked(model="ollama/m"))
        assert server.asked[0].body["truncate"] is False
        with pytest.raises(ProviderRejected, match="'colour' has no equivalent"):
            await gateway.embed(asked(model="ollama/m", params={"colour": 1}))


async def test_mistrals_name_for_dimensions_is_its_own(gateways, openai, key):
    _, server = openai
    entry = f"name: mistral, type: openai, base_url: '{server.base_url}', quirks: mistral, api_key_env: KEY"
    gateway = gateways(f"providers: [{{{entry}}}]", KEY=key)
    with pytest.raises(ProviderRejected, match="output_dimension"):  # this server is none of theirs
        await gateway.embed(asked(model="mistral/m", dimensions=3))
    assert server.asked[0].body["output_dimension"] == 3


@pytest.mark.parametrize("model", ["anthropic/claude-opus-5", "groq/llama", "local/smollm2-135m-instruct", "bedrock/m"])
async def test_providers_without_embeddings_are_not_asked(gateways, model):
    gateway = gateways(ANTHROPIC_API_KEY="k", GROQ_API_KEY="k", AWS_BEARER_TOKEN_BEDROCK="k", AWS_REGION="eu-west-1")
    with pytest.raises(ProviderRejected, match=r"has no embeddings; docs/providers.md says which") as caught:
        await gateway.embed(asked(model=model))
    assert caught.value.attempts == 0


async def test_unknown_providers_and_missing_keys_are_said_as_for_completions(gateways):
    with pytest.raises(UnknownProvider, match="there is no provider 'opnai'; did you mean 'openai'"):
        await gateways().embed(asked(model="opnai/m"))
    with pytest.raises(CompletionFailed, match="OPENAI_API_KEY"):
        await gateways().embed(asked(model="openai/m"))


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (EmbeddingRequest("p/m", ()), InvalidArgument, "there is no text"),
        (asked("a", ""), InvalidArgument, r"inputs\[1\]: the text is empty"),
        (asked(dimensions=0), InvalidArgument, "dimensions: must be at least 1"),
        (asked(*["a"] * 2049), TooLarge, "at most 2048"),
        (asked("€" * 400_000), TooLarge, "they have 1200000 bytes"),
        (asked(*["a"] * 300, dimensions=3072), TooLarge, "send at most 292 texts"),
    ],
)
async def test_what_nobody_can_answer_is_refused_before_anyone_is_asked(gateways, request_, error, message):
    with pytest.raises(error, match=message):
        await gateways().embed(request_)


async def test_vectors_that_no_answer_can_take_end_the_call_with_the_first_of_them(openai):
    gateway, server = openai
    items = [{"index": index, "embedding": [0.5] * 2000} for index in range(64)]
    server.answer = Reply(body=orjson.dumps({"data": items}))
    with pytest.raises(TooLarge, match="send at most 450 texts"):
        await gateway.embed(asked(*["a"] * 600, model="openai/m"))
    assert len(server.asked) == 1


async def test_later_request_that_fails_fails_the_call_and_says_all_attempts(openai):
    gateway, server = openai
    server.script.extend([Said(), Reply(status=400, message="no")])
    with pytest.raises(ProviderRejected) as caught:
        await gateway.embed(asked(*["a"] * 300, model="openai/m"))
    assert caught.value.attempts == 2
    assert gateway.counts.tokens["openai", "m", "input"] == 12  # of the first, which is paid


async def test_another_key_is_tried_and_a_fallback_never(gateways, openai):
    _, server = openai
    entry = f"name: p, type: openai, base_url: '{server.base_url}'"
    keys = "keys: [{name: one, api_key_env: K1}, {name: two, api_key_env: K2}]"
    gateway = gateways(f"providers: [{{{entry}, {keys}, fallbacks: {{'*': [mock/ok]}}}}]", K1="k1", K2="k2")
    server.script.append(Reply(status=401))
    assert (await gateway.embed(asked())).attempts == 2
    assert len({request.headers["authorization"] for request in server.asked}) == 2
    server.answer = Reply(status=500)
    with pytest.raises(CompletionFailed, match="HTTP 500"):
        await gateway.embed(asked())


async def test_time_of_the_call_and_of_the_providers_file_is_kept(gateways, openai):
    gateway, server = openai
    server.answer = Reply(upto=lambda body: 0, then="hang")
    with pytest.raises(DeadlineExceeded, match=r"did not answer within 0.1 s \(1 request was made\)"):
        await gateway.embed(asked(model="openai/m", timeout=0.1))
    await server.closed()
    entry = f"name: p, type: openai, base_url: '{server.base_url}', api_key_env: KEY, timeouts: {{total: 0.1}}"
    with pytest.raises(CompletionFailed, match=r"timeouts\.total") as caught:
        await gateways(f"providers: [{{{entry}}}]", KEY="k").embed(asked())
    assert caught.value.attempts == 3
    await server.closed()


async def test_price_of_tokens_that_nobody_counted_is_unknown(openai):
    gateway, server = openai
    server.answer = Reply(body=orjson.dumps({"data": [{"index": 0, "embedding": [0.5]}]}))
    found = await gateway.embed(asked("a", model="openai/text-embedding-3-small"))
    assert (found.tokens_in, found.cost_nanousd, found.price_version) == (None, None, "")
    assert gateway.counts.cost_unknown == {"openai": 1}


async def test_price_of_the_public_list_is_for_texts_alone(gateways):
    gateway = gateways()
    prices = gateway._router.pools["openai"].upstreams[0].provider.prices
    assert prices.tariff("text-embedding-3-small").price.input_nanousd_per_mtok == 20_000_000


async def test_mock_has_the_same_vector_for_a_text_and_near_ones_for_near_texts(gateways):
    script = "{model: bad, error: {status: 400}}, {model: e, text: '', tokens_in: 9}"
    gateway = gateways(f"providers: [{{name: mock, type: mock, script: [{script}]}}]")
    found: Embeddings = await gateway.embed(asked("red fox", "red fox runs", "blue whale", model="mock/e"))
    first, near, far = found.vectors
    assert (len(first), found.tokens_in, found.cost_nanousd) == (256, 9, 0)
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-6) for vector in found.vectors)
    assert sum(map(float.__mul__, first, near)) > 0.8
    assert sum(map(float.__mul__, first, far)) == 0
    assert (await gateway.embed(asked("red fox", model="mock/e"))).vectors == (first,)
    assert len((await gateway.embed(asked("a", model="mock/e", dimensions=5))).vectors[0]) == 5
    with pytest.raises(ProviderRejected, match="scripted error"):
        await gateway.embed(asked(model="mock/bad"))
