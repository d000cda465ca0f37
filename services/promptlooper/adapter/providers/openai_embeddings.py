"""Embeddings in the OpenAI format: OpenAI, Azure OpenAI, and all that are compatible. No I/O."""

from __future__ import annotations

from typing import Any

from promptlooper.adapter.providers.azure import azure_path
from promptlooper.adapter.providers.bodies import answer_in, check_params, malformed
from promptlooper.adapter.providers.embedding import embeddings_of
from promptlooper.adapter.providers.openai_format import count_in
from promptlooper.adapter.providers.quirks import OPENAI, Quirks
from promptlooper.adapter.providers.refusal import json_bytes
from promptlooper.embeddings import EmbeddingRequest, Embeddings


class OpenAIEmbeddings:
    def __init__(self, quirks: Quirks) -> None:
        self._quirks = quirks
        self.at_once = 256 if quirks.base64 else 64  # a number in JSON takes up to 22 bytes, of 8 MiB in all

    def path(self, model: str) -> str:
        return "/embeddings"

    def body(self, model: str, request: EmbeddingRequest) -> bytes:
        name = self._quirks.dimensions
        check_params(request.params, ours=("model", "input", "encoding_format", "dimensions", name), missing=())
        body: dict[str, Any] = {**request.params, "model": model, "input": request.inputs}
        if self._quirks.base64:
            body["encoding_format"] = "base64"
        if request.dimensions is not None:
            body[name] = request.dimensions
        return json_bytes(body)

    def embeddings(self, body: bytes, model: str, request: EmbeddingRequest) -> Embeddings:
        data = answer_in(body)
        items, answered, usage = data.get("data"), data.get("model"), data.get("usage")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise malformed("there is no list of embeddings")
        found = {item["index"]: item.get("embedding") for item in items if type(item.get("index")) is int}
        if found.keys() != set(range(len(items))):
            raise malformed("its vectors do not say which text each is of")
        return embeddings_of(
            [found[index] for index in range(len(items))],
            request,
            model=answered if isinstance(answered, str) and answered else model,
            tokens_in=count_in(usage, "prompt_tokens") if isinstance(usage, dict) else None,
        )


class AzureEmbeddings(OpenAIEmbeddings):
    """A model is the name of a deployment."""

    def __init__(self, api_version: str = "") -> None:
        super().__init__(OPENAI)
        self._api_version = api_version

    def path(self, model: str) -> str:
        return azure_path("embeddings", model, self._api_version)
