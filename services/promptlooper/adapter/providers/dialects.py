"""The wire formats by the type of a provider; each is loaded when a provider of its type is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from promptlooper.adapter.config import ProviderEntry
from promptlooper.adapter.providers import quirks
from promptlooper.adapter.providers.http import Dialect


def _openai(entry: ProviderEntry, base_url: str) -> Dialect:
    from promptlooper.adapter.providers.openai import OpenAIChat

    said = quirks.named(entry.quirks or entry.name)
    return OpenAIChat(said if said is not None and entry.quirks else quirks.of_host(urlsplit(base_url).hostname or ""))


def _anthropic(entry: ProviderEntry, base_url: str) -> Dialect:
    from promptlooper.adapter.providers.anthropic import AnthropicMessages

    return AnthropicMessages(base_url)


def _gemini(entry: ProviderEntry, base_url: str) -> Dialect:
    from promptlooper.adapter.providers.gemini import GeminiGenerateContent

    return GeminiGenerateContent(base_url)


DIALECTS: Mapping[str, Callable[[ProviderEntry, str], Dialect]] = {
    "openai": _openai,
    "anthropic": _anthropic,
    "gemini": _gemini,
}
