"""Well-known endpoints of the OpenAI format: there without any file, with the key their users have already."""

from __future__ import annotations

import pytest

from promptlooper.adapter.providers.quirks import ENDPOINTS
from promptlooper.errors import ProviderRejected


@pytest.mark.parametrize("name", sorted(ENDPOINTS))
async def test_endpoint_is_there_with_its_key(gateways, name):
    variable = ENDPOINTS[name].api_key_env
    (without,) = await gateways().check_models([f"{name}/m"])
    assert without.problem == f"provider {name!r} has no key; set the environment variable {variable!r}"
    gateway = gateways(**{variable: "k-1"})
    (upstream,) = gateway._router.pools[name].upstreams
    assert upstream.provider.endpoint == ENDPOINTS[name].base_url
    assert (await gateway.check_models([f"{name}/m"]))[0].problem is None


async def test_endpoints_without_a_key_are_not_listed(gateways):
    def providers(infos):
        return {info.provider for info in infos}

    assert providers(await gateways().list_models()) == {"openai", "ollama", "local", "mock"}
    assert "groq" in providers(await gateways(GROQ_API_KEY="k-1").list_models())
    said = "providers: [{name: groq, limits: {max_concurrency: 2}}]"
    assert "groq" in providers(await gateways(said).list_models())


async def test_a_providers_own_key_is_sent_to_its_address_whatever_the_entry_is_called(gateways):
    file = "providers: [{name: fast, type: openai, base_url: 'https://api.groq.com/openai/v1'}]"
    (check,) = await gateways(file, OPENAI_API_KEY="k-1").check_models(["fast/m"])
    assert "'GROQ_API_KEY'" in check.problem
    (check,) = await gateways(file, GROQ_API_KEY="k-1").check_models(["fast/m"])
    assert check.problem is None


async def test_quirks_may_be_those_of_a_named_server(gateways, fake, asking):
    file = f"providers: [{{name: gpu, type: openai, base_url: '{fake.base_url}', quirks: %s}}]"
    await gateways(file % "vllm").complete(asking(model="gpu/m", reasoning_tokens=64))
    assert fake.requests[0].body["thinking_token_budget"] == 64
    with pytest.raises(ProviderRejected, match="'logprobs' has no equivalent at this provider; remove it"):
        await gateways(file % "groq").complete(asking(model="gpu/m", logprobs=True))
    assert len(fake.requests) == 1


async def test_well_known_name_with_another_format_has_no_address_to_guess(gateways):
    (check,) = await gateways("providers: [{name: ollama, type: openai}]", OPENAI_API_KEY="k-1").check_models(
        ["ollama/m"]
    )
    assert check.problem == "provider 'ollama' has no address; give it a 'base_url' in the providers file"
