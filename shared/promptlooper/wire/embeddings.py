"""Embeddings on the wire."""

from __future__ import annotations

from array import array

from promptlooper.embeddings import EmbeddingRequest, Embeddings
from promptlooper.v1 import adapter_service_pb2 as pb
from promptlooper.wire.completion import timeout_of
from promptlooper.wire.scalars import milliseconds, object_of, object_text, refusing_misfits


def request_to_pb(request: EmbeddingRequest) -> pb.EmbedRequest:
    with refusing_misfits("request"):
        return pb.EmbedRequest(
            model=request.model,
            inputs=request.inputs,
            dimensions=request.dimensions,
            extra_json=object_text(request.params, "extra_json"),
            timeout_ms=milliseconds(request.timeout),
        )


def request_from_pb(message: pb.EmbedRequest, *, within: float | None = None) -> EmbeddingRequest:
    """`within`: seconds that the caller has, where it said."""
    return EmbeddingRequest(
        message.model,
        tuple(message.inputs),
        message.dimensions if message.HasField("dimensions") else None,
        object_of(message.extra_json, "extra_json"),
        timeout_of(message.timeout_ms, "timeout_ms", within),
    )


def embeddings_to_pb(embeddings: Embeddings) -> pb.EmbedResponse:
    return pb.EmbedResponse(
        embeddings=[pb.Embedding(values=vector) for vector in embeddings.vectors],
        model=embeddings.model,
        tokens_in=embeddings.tokens_in,
        cost_nanousd=embeddings.cost_nanousd,
        price_version=embeddings.price_version,
        attempts=embeddings.attempts,
        latency_ms=embeddings.latency_ms,
    )


def embeddings_from_pb(message: pb.EmbedResponse) -> Embeddings:
    return Embeddings(
        tuple(array("f", embedding.values) for embedding in message.embeddings),
        message.model,
        message.tokens_in if message.HasField("tokens_in") else None,
        message.latency_ms,
        message.cost_nanousd if message.HasField("cost_nanousd") else None,
        message.price_version,
        message.attempts,
    )
