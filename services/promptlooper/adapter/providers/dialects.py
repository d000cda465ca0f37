"""The wire formats by the type of a provider; each is loaded when a provider of its type is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from promptlooper.adapter.config import ProviderEntry
from promptlooper.adapter.providers import quirks
from promptlooper.adapter.providers.embedding import EmbeddingDialect
from promptlooper.adapter.providers.http import Dialect

if TYPE_CHECKING:
    from promptlooper.adapter.batch.calls import Calls
    from promptlooper.adapter.batch.format import BatchProvider


def _openai(entry: ProviderEntry, base_url: str, env: Mapping[str, str]) -> Dialect:
    from promptlooper.adapter.providers.openai import OpenAIChat

    return OpenAIChat(_quirks(entry, base_url))


def _quirks(entry: ProviderEntry, base_url: str) -> quirks.Quirks:
    said = quirks.named(entry.quirks) if entry.quirks else None
    return said or quirks.of_host(urlsplit(base_url).hostname or "")


def _anthropic(entry: ProviderEntry, base_url: str, env: Mapping[str, str]) -> Dialect:
    from promptlooper.adapter.providers.anthropic import AnthropicMessages

    return AnthropicMessages(base_url)


def _gemini(entry: ProviderEntry, base_url: str, env: Mapping[str, str]) -> Dialect:
    from promptlooper.adapter.providers.gemini import GeminiGenerateContent

    return GeminiGenerateContent(base_url)


def _azure(entry: ProviderEntry, base_url: str, env: Mapping[str, str]) -> Dialect:
    from promptlooper.adapter.providers.azure import AzureChat

    return AzureChat(_api_version(entry, env))


def _api_version(entry: ProviderEntry, env: Mapping[str, str]) -> str:
    return entry.api_version or env.get("AZURE_OPENAI_API_VERSION", "").strip()


def _responses(entry: ProviderEntry, base_url: str, env: Mapping[str, str]) -> Dialect:
    from promptlooper.adapter.providers.responses import OpenAIResponses

    return OpenAIResponses()


def _ollama(entry: ProviderEntry, base_url: str, env: Mapping[str, str]) -> Dialect:
    from promptlooper.adapter.providers.ollama import OllamaChat

    return OllamaChat()


def _bedrock(entry: ProviderEntry, base_url: str, env: Mapping[str, str]) -> Dialect:
    from promptlooper.adapter.providers.bedrock import BedrockConverse

    return BedrockConverse()


DIALECTS: Mapping[str, Callable[[ProviderEntry, str, Mapping[str, str]], Dialect]] = {
    "openai": _openai,
    "openai-responses": _responses,
    "azure": _azure,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "ollama": _ollama,
    "bedrock": _bedrock,
}
WANT_BYTES = frozenset({"bedrock", "ollama"})  # of images: they take no addresses


def embedding_of(entry: ProviderEntry, base_url: str, env: Mapping[str, str]) -> EmbeddingDialect | None:
    """Its format of embeddings; None where it has none."""
    if entry.type in ("openai", "openai-responses"):
        from promptlooper.adapter.providers.openai_embeddings import OpenAIEmbeddings

        said = _quirks(entry, base_url)
        return OpenAIEmbeddings(said) if said.embeds else None
    if entry.type == "azure":
        from promptlooper.adapter.providers.openai_embeddings import AzureEmbeddings

        return AzureEmbeddings(_api_version(entry, env))
    if entry.type == "gemini":
        from promptlooper.adapter.providers.gemini_embeddings import GeminiEmbeddings

        return GeminiEmbeddings(base_url)
    if entry.type == "ollama":
        from promptlooper.adapter.providers.ollama_embeddings import OllamaEmbeddings

        return OllamaEmbeddings()
    return None


def _openai_batches(calls: Calls) -> BatchProvider:
    from promptlooper.adapter.batch.openai import OpenAIBatches

    return OpenAIBatches(calls)


def _anthropic_batches(calls: Calls) -> BatchProvider:
    from promptlooper.adapter.batch.anthropic import AnthropicBatches

    return AnthropicBatches(calls)


def _gemini_batches(calls: Calls) -> BatchProvider:
    from promptlooper.adapter.batch.gemini import GeminiBatches

    return GeminiBatches(calls)


_BATCHES: Mapping[str, Callable[[Calls], BatchProvider]] = {
    "openai": _openai_batches,
    "openai-responses": _openai_batches,
    "anthropic": _anthropic_batches,
    "gemini": _gemini_batches,
}


def batches_of(entry: ProviderEntry, base_url: str) -> Callable[[Calls], BatchProvider] | None:
    """None where it answers no batches."""
    if entry.type == "gemini" and base_url.rpartition("/")[2].startswith("v1"):
        return None  # its files are at paths before the version
    if entry.type == "openai" and not _quirks(entry, base_url).batches:
        return None
    return _BATCHES.get(entry.type)
