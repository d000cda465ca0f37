"""Embeddings of Google's Gemini API: batchEmbedContents. No I/O."""

from __future__ import annotations

from promptlooper.adapter.providers.bodies import answer_in, check_params, malformed
from promptlooper.adapter.providers.embedding import embeddings_of
from promptlooper.adapter.providers.gemini import path_of, resource_of, version_of
from promptlooper.adapter.providers.openai_format import count_in
from promptlooper.adapter.providers.refusal import json_bytes
from promptlooper.embeddings import EmbeddingRequest, Embeddings

_OURS = ("model", "content", "outputDimensionality", "output_dimensionality", "dimensions")


class GeminiEmbeddings:
    at_once = 100  # it takes no more

    def __init__(self, base_url: str) -> None:
        self._before = version_of(base_url)

    def path(self, model: str) -> str:
        return f"{self._before}/{path_of(model)}:batchEmbedContents"

    def body(self, model: str, request: EmbeddingRequest) -> bytes:
        check_params(request.params, ours=_OURS, missing=())
        same = {**request.params, "model": "/".join(resource_of(model))}
        if request.dimensions is not None:
            same["outputDimensionality"] = request.dimensions
        return json_bytes({"requests": [{**same, "content": {"parts": [{"text": text}]}} for text in request.inputs]})

    def embeddings(self, body: bytes, model: str, request: EmbeddingRequest) -> Embeddings:
        data = answer_in(body)
        items, usage = data.get("embeddings"), data.get("usageMetadata")
        if not isinstance(items, list):
            raise malformed("there is no list of embeddings")
        found = [item.get("values") if isinstance(item, dict) else None for item in items]
        tokens_in = count_in(usage, "promptTokenCount") if isinstance(usage, dict) else None
        return embeddings_of(found, request, model=model, tokens_in=tokens_in)
