"""Embeddings in Ollama's own format: `/api/embed`. No I/O."""

from __future__ import annotations

from typing import Any

from promptlooper.adapter.providers.bodies import answer_in, check_params, malformed
from promptlooper.adapter.providers.embedding import embeddings_of
from promptlooper.adapter.providers.ollama import OPTIONS
from promptlooper.adapter.providers.openai_format import count_in
from promptlooper.adapter.providers.refusal import json_bytes, no_parameter
from promptlooper.embeddings import EmbeddingRequest, Embeddings

_BESIDE = frozenset({"truncate", "keep_alive"})


class OllamaEmbeddings:
    at_once = 64  # a number in JSON takes up to 22 bytes, of 8 MiB in all

    def path(self, model: str) -> str:
        return "/api/embed"

    def body(self, model: str, request: EmbeddingRequest) -> bytes:
        check_params(request.params, ours=("model", "input", "dimensions"), missing=())
        # Otherwise it drops what does not fit of a text, and says nothing.
        body: dict[str, Any] = {"model": model, "input": request.inputs, "truncate": False}
        options: dict[str, Any] = {}
        for name, value in request.params.items():
            if name == "options" and isinstance(value, dict):
                options |= value
            elif name in OPTIONS:
                options[name] = value
            elif name in _BESIDE:
                body[name] = value
            else:
                raise no_parameter(name, "it is no option of Ollama's")
        if options:
            body["options"] = options
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        return json_bytes(body)

    def embeddings(self, body: bytes, model: str, request: EmbeddingRequest) -> Embeddings:
        data = answer_in(body)
        found, answered = data.get("embeddings"), data.get("model")
        if not isinstance(found, list):
            raise malformed("there is no list of embeddings")
        return embeddings_of(
            found,
            request,
            model=answered if isinstance(answered, str) and answered else model,
            tokens_in=count_in(data, "prompt_eval_count"),
        )
