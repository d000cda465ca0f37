"""Azure OpenAI: where it is asked and how, from what its operator says."""

from __future__ import annotations

import pytest

from promptlooper.adapter.address import azure_base_url
from promptlooper.testing.wires import WireServer
from promptlooper.testing.wires.azure import AzureWire


@pytest.fixture
async def azure():
    async with WireServer(AzureWire()) as server:
        yield server


async def test_variables_alone_are_enough(gateways, azure, asking, key):
    variables = {"AZURE_OPENAI_ENDPOINT": azure.address + "/", "AZURE_OPENAI_API_KEY": key}
    await gateways(**variables).complete(asking(model="azure/chat", max_tokens=5))
    await gateways(**variables, AZURE_OPENAI_API_VERSION="2024-10-21").complete(
        asking(model="azure/my chat", max_tokens=5)
    )
    v1, dated = azure.asked
    assert v1.path == "/openai/v1/chat/completions"
    assert (v1.body["model"], v1.body["max_completion_tokens"], v1.headers["api-key"]) == ("chat", 5, key)
    assert dated.path == "/openai/deployments/my%20chat/chat/completions?api-version=2024-10-21"
    assert dated.body["max_tokens"] == 5
    assert "authorization" not in dated.headers


async def test_reasoning_models_are_told_their_limit_in_the_word_that_they_know(gateways, azure, asking, key):
    file = f"providers: [{{name: azure, base_url: '{azure.address}/openai/v1', api_version: 2024-10-21}}]"
    gateway = gateways(file, AZURE_OPENAI_API_KEY=key)
    for model in ("o4-mini", "our-gpt-5-mini", "gpt5"):
        await gateway.complete(asking(model=f"azure/{model}", max_tokens=5))
    assert [asked.body.get("max_completion_tokens") for asked in azure.asked] == [5, 5, 5]


async def test_what_is_missing_is_named(gateways):
    (check,) = await gateways(AZURE_OPENAI_API_KEY="k-1").check_models(["azure/chat"])
    assert check.problem == (
        "provider 'azure' has no address; give it a 'base_url' in the providers file, or set the environment variable "
        "'AZURE_OPENAI_ENDPOINT'"
    )
    (check,) = await gateways(AZURE_OPENAI_ENDPOINT="https://a.openai.azure.com").check_models(["azure/chat"])
    assert check.problem == "provider 'azure' has no key; set the environment variable 'AZURE_OPENAI_API_KEY'"


@pytest.mark.parametrize("end", ["", "/", "/openai", "/openai/v1", "/openai/v1/"])
def test_address_is_the_resources_however_it_is_written(end):
    assert azure_base_url("https://a.openai.azure.com" + end) == "https://a.openai.azure.com"
