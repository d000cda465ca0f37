"""What spans say of a question to a model, in the words of OpenTelemetry's conventions for generative AI. Never what
was asked or answered."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from promptlooper.completion import Completion
from promptlooper.embeddings import Embeddings


def asked(provider: str, model: str, operation: str = "chat") -> dict[str, Any]:
    return {"gen_ai.operation.name": operation, "gen_ai.provider.name": provider, "gen_ai.request.model": model}


def answered(completion: Completion) -> dict[str, Any]:
    return {
        "gen_ai.response.model": completion.model,
        "gen_ai.response.finish_reasons": [completion.finish_reason],
        "gen_ai.usage.input_tokens": completion.tokens_in,
        "gen_ai.usage.output_tokens": completion.tokens_out,
        "promptlooper.attempts": completion.attempts,
    }


def embedded(embeddings: Embeddings) -> dict[str, Any]:
    return {
        "gen_ai.response.model": embeddings.model,
        "gen_ai.usage.input_tokens": embeddings.tokens_in,
        "promptlooper.attempts": embeddings.attempts,
    }


def server(endpoint: str) -> dict[str, Any]:
    """Of an address, which may hold secrets, the host and nothing else."""
    return {"server.address": urlsplit(endpoint).hostname}
