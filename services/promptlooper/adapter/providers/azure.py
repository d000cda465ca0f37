"""Azure OpenAI: the OpenAI format at other paths, with the key in a header of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import quote

from promptlooper.adapter.providers.openai import OpenAIChat
from promptlooper.adapter.providers.openai_format import request_body
from promptlooper.adapter.providers.quirks import OPENAI
from promptlooper.completion import CompletionRequest

_REASONS = re.compile(r"(?:^|[^a-z0-9])(?:o\d|gpt-?(?:[5-9]|\d\d))", re.IGNORECASE)
_DATED = replace(OPENAI, renamed={})


def azure_path(operation: str, deployment: str, api_version: str) -> str:
    if not api_version:
        return f"/openai/v1/{operation}"
    return f"/openai/deployments/{quote(deployment, safe='')}/{operation}?api-version={api_version}"


class AzureChat(OpenAIChat):
    """The v1 API; with an `api_version` the API of deployments' paths. A model is the name of a deployment."""

    def __init__(self, api_version: str = "") -> None:
        super().__init__(OPENAI)
        self._api_version = api_version

    def path(self, model: str, *, stream: bool) -> str:
        return azure_path("chat/completions", model, self._api_version)

    def place(self, key: str) -> Mapping[str, str]:
        return {"api-key": key}

    def body(self, model: str, request: CompletionRequest, *, stream: bool) -> bytes:
        # Dated versions know `max_completion_tokens` only of reasoning models, which know nothing else; v1 of all.
        renames = not self._api_version or _REASONS.search(model)
        return request_body(model, request, OPENAI if renames else _DATED, stream=stream)
