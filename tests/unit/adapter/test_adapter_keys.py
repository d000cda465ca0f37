"""Keys and deployments over the real wire: who is asked, with which key, and what happens to a key that is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from promptlooper.adapter.keys import Key
from promptlooper.errors import ProviderCredentials
from promptlooper.testing.provider import FakeProvider, Reply, error

TWO_KEYS = """
providers:
  - name: gpu
    type: openai
    base_url: {url}
    keys: [{{api_key_env: FIRST, weight: 3}}, {{name: second, api_key_file: second}}]
"""


def key_of(request) -> str:
    return request.headers.get("authorization", "").removeprefix("Bearer ")


def refusing(*refused: str):
    """A provider that does not know these keys."""
    return lambda request: error(401, "who are you?") if key_of(request) in refused else Reply("ok")


@pytest.fixture
def second(tmp_path: Path) -> Path:
    path = tmp_path / "second"
    path.write_text("k-second\n")
    return path


async def test_a_refused_key_is_never_sent_again_and_the_other_answers(gateways, fake, asking, second):
    gateway = gateways(TWO_KEYS.format(url=fake.base_url), FIRST="k-first")
    fake.answer = refusing("k-first")
    answers = [await gateway.complete(asking(model="gpu/m")) for _ in range(3)]
    assert [answer.attempts for answer in answers] == [2, 1, 1]
    assert [call.asker for call in fake.history] == ["k-first", *["k-second"] * 3]
    assert not any(answer.fallback for answer in answers)


async def test_keys_are_used_by_weight(gateways, fake, asking, second):
    gateway = gateways(TWO_KEYS.format(url=fake.base_url), FIRST="k-first")
    numbers = iter(n / 20 for n in range(20))
    gateway._router._random = lambda: next(numbers)
    for _ in range(20):
        await gateway.complete(asking(model="gpu/m"))
    assert Counter(call.asker for call in fake.history) == {"k-first": 15, "k-second": 5}


async def test_a_limited_key_gives_way_to_the_other(gateways, fake, asking, second, time):
    gateway = gateways(TWO_KEYS.format(url=fake.base_url), FIRST="k-first")
    fake.answer = lambda request: error(429, retry_after="30") if key_of(request) == "k-first" else Reply("ok")
    answers = [await gateway.complete(asking(model="gpu/m")) for _ in range(2)]
    assert ([answer.attempts for answer in answers], time.slept) == ([2, 1], [])
    time.advance(30)
    assert (await gateway.complete(asking(model="gpu/m"))).attempts == 2


async def test_a_sole_key_that_is_refused_is_said_until_its_file_has_another(gateways, fake, asking, tmp_path):
    path = tmp_path / "key"
    path.write_text("k-old")
    gateway = gateways(f"providers: [{{name: gpu, type: openai, base_url: '{fake.base_url}', api_key_file: key}}]")
    fake.answer = refusing("k-old")
    with pytest.raises(ProviderCredentials) as first:
        await gateway.complete(asking(model="gpu/m"))
    with pytest.raises(ProviderCredentials, match=r"refused the key of the file '.*/key' \(HTTP 401\)") as later:
        await gateway.complete(asking(model="gpu/m"))
    assert (first.value.attempts, later.value.attempts, len(fake.requests)) == (1, 0, 1)
    (info,) = [info for info in await gateway.list_models() if info.provider == "gpu"]
    assert (info.available, info.problem) == (False, str(later.value))
    gateway._router.pools["gpu"].upstreams[0].provider._key._reloaded._look_every = 0.0
    path.write_text("k-new\n")
    assert (await gateway.complete(asking(model="gpu/m"))).output == "ok"
    assert [call.asker for call in fake.history] == ["k-old", "k-new"]


async def test_a_server_that_asks_for_a_key_which_none_is_set_for_is_asked_each_time(gateways, fake, asking):
    gateway = gateways(f"providers: [{{name: gpu, type: openai, base_url: '{fake.base_url}'}}]")
    fake.answer = refusing("")
    for _ in range(2):
        with pytest.raises(ProviderCredentials):
            await gateway.complete(asking(model="gpu/m"))
    assert len(fake.requests) == 2


async def test_a_deployment_that_is_away_gives_way_to_another_and_has_its_models_and_key(gateways, fake, asking):
    async with FakeProvider("here") as other:
        gateway = gateways(
            f"""
providers:
  - name: gpu
    type: openai
    keys: [{{api_key_env: FIRST}}]
    deployments:
      - {{name: eu, base_url: "{fake.base_url}", weight: 5}}
      - {{name: us, base_url: "{other.base_url}", models: [m], api_key_env: OTHER}}
""",
            FIRST="k-first",
            OTHER="k-other",
        )
        fake.answer = Reply(drop=True)
        answer = await gateway.complete(asking(model="gpu/m"))
        assert (answer.output, answer.attempts, answer.model, answer.fallback) == ("here", 2, "m", False)
        assert (fake.history[0].asker, other.history[0].asker) == ("k-first", "k-other")
        fake.answer = "there"
        assert (await gateway.complete(asking(model="gpu/another"))).output == "there"
        one, another = await gateway.check_models(["gpu/m", "gpu/another"])
        assert one.endpoint != another.endpoint  # who may answer is a part of the cache's key


def test_a_key_file_that_appears_later_is_taken_and_no_key_is_ever_shown(tmp_path):
    path = tmp_path / "key"
    key = Key.of_file("gpu", path, name="late", look_every=0.0)
    assert "can't be read" in key.problem().message
    for text in ("", "two words", "k-canary-ü"):
        path.write_text(text)
        assert "canary" not in key.problem().message
    path.write_text("k-canary-1")
    assert (key.problem(), key.current()) == (None, "k-canary-1")
    key.refuse("k-canary-1")
    path.write_text("k-canary-22")
    assert (key.problem(), key.current(), key.values) == (None, "k-canary-22", ["k-canary-22", "k-canary-1"])
    key.refuse("k-canary-1")  # an answer that was on its way
    assert key.problem() is None
    key.refuse("k-canary-22")
    assert "canary" not in repr(key) + key.problem().message
