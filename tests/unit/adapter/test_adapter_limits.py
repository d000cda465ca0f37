"""The gateway and its limits, over the real wire."""

from __future__ import annotations

import pytest

from promptlooper.errors import ProviderRateLimited
from promptlooper.testing.provider import FakeProvider, Reply, error


def file(fake: FakeProvider, limits: str, more: str = "") -> str:
    return f"providers: [{{name: one, type: openai, base_url: '{fake.base_url}', limits: {limits}{more}}}]"


async def test_requests_beyond_the_minute_are_not_made(gateways, fake, asking, time):
    gateway = gateways(file(fake, "{requests_per_minute: 30, models: {slow: {requests_per_minute: 2}}}"))
    await gateway.complete(asking(model="one/slow"))
    time.advance(30)
    await gateway.complete(asking(model="one/slow"))
    time.advance(10)
    with pytest.raises(ProviderRateLimited, match="not asked: the requests or tokens of this minute") as held:
        await gateway.complete(asking(model="one/slow"))
    assert (held.value.attempts, held.value.metadata["waits_for"]) == (0, "rate")
    assert 5 < held.value.retry_after <= 31
    await gateway.complete(asking(model="one/other"))
    assert len(fake.requests) == 3
    time.advance(held.value.retry_after)
    await gateway.complete(asking(model="one/slow"))


async def test_tokens_are_reserved_and_what_was_not_used_is_given_back(gateways, fake, asking, time):
    gateway = gateways(file(fake, "{tokens_per_minute: 1000}"))
    fake.answer = Reply("ok", tokens_in=10, tokens_out=90)
    for _ in range(3):  # 800 are reserved each time, 100 used
        await gateway.complete(asking(model="one/m", max_tokens=790))
        time.advance(1)
    with pytest.raises(ProviderRateLimited):
        await gateway.complete(asking(model="one/m", max_tokens=790))
    assert len(fake.requests) == 3


async def test_quota_headers_are_believed(gateways, fake, asking, time):
    gateway = gateways(file(fake, "{}"))
    left = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30s"}
    fake.script.append(Reply("ok", headers=left))
    await gateway.complete(asking(model="one/m"))
    with pytest.raises(ProviderRateLimited, match="its quota is used up") as held:
        await gateway.complete(asking(model="one/m"))
    assert held.value.retry_after == pytest.approx(30, abs=0.5)
    (state,) = gateway.limiter.states().values()
    assert (state.waits_for, state.requests_left, state.wait_ms) == ("quota", 0, 30_000)
    assert gateway.limiter.held == {("one", "quota"): 1}
    time.advance(30)
    await gateway.complete(asking(model="one/m"))
    assert len(fake.requests) == 2


async def test_refusal_stops_the_others_until_the_provider_allows(gateways, fake, asking, time):
    gateway = gateways(file(fake, "{}"))
    fake.script.append(error(429, retry_after="20"))
    for _ in range(3):
        with pytest.raises(ProviderRateLimited):
            await gateway.complete(asking(model="one/m"))
    assert len(fake.requests) == 1
    time.advance(20)
    await gateway.complete(asking(model="one/m"))


async def test_another_key_is_asked_where_one_has_no_room(gateways, fake, asking):
    keys = ", keys: [{api_key_env: FIRST, weight: 1000000}, {api_key_env: SECOND}]"
    gateway = gateways(file(fake, "{requests_per_minute: 1}", keys), FIRST="sk-first", SECOND="sk-second")
    await gateway.complete(asking(model="one/m"))
    await gateway.complete(asking(model="one/m"))
    assert [request.headers["authorization"] for request in fake.requests] == ["Bearer sk-first", "Bearer sk-second"]
    with pytest.raises(ProviderRateLimited):
        await gateway.complete(asking(model="one/m"))
    assert {state.key for state in gateway.limiter.states().values()} == {"FIRST", "SECOND"}


async def test_models_show_the_limits_of_what_was_asked(gateways, fake, asking):
    gateway = gateways(file(fake, "{max_concurrency: 7, tokens_per_minute: 1000000}"))
    await gateway.complete(asking(model="one/m"))
    (info,) = [info for info in await gateway.list_models() if info.model == "one/m"]
    (state,) = info.limits
    assert (state.max_concurrency, state.tokens_per_minute, state.requests_per_minute) == (7, 1_000_000, None)
    assert (state.in_flight, state.waiting, state.waits_for, state.adapters) == (0, 0, "", 1)
