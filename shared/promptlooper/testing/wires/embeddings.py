"""Embeddings as the wires take and give them. Those of the OpenAI format come last first: only `index` says whose."""

from __future__ import annotations

import hashlib
import struct
from base64 import b64encode
from typing import Annotated, Any, Literal

import orjson
from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from promptlooper.testing.wires.wire import Asked, Refused, Said, Strict, checked

_Text = Annotated[str, Field(min_length=1)]
_Length = Annotated[int, Field(ge=1, le=3072)]
_USUAL = 8


def numbers_of(text: str, dimensions: int | None = None) -> list[float]:
    """The vector that every fake has for a text: such as 32-bit floats hold without loss."""
    digest = hashlib.sha256(text.encode()).digest()
    return [digest[place % 32] / 256 - 0.5 for place in range(dimensions or _USUAL)]


class _OpenAIRequest(Strict):
    model: _Text
    input: Annotated[list[_Text], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: _Length | None = None
    user: str | None = None


def openai_checked(asked: Asked) -> None:
    checked(_OpenAIRequest, asked.body)


def openai_answer(asked: Asked, said: Said) -> bytes:
    request = _OpenAIRequest.model_validate(asked.body)
    items = []
    for index, text in enumerate(request.input):
        numbers: Any = numbers_of(text, request.dimensions)
        if request.encoding_format == "base64":
            numbers = b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
        items.append({"object": "embedding", "index": index, "embedding": numbers})
    usage = {"prompt_tokens": said.tokens_in, "total_tokens": said.tokens_in}
    return orjson.dumps({"object": "list", "data": items[::-1], "model": request.model, "usage": usage})


class _Camel(Strict):
    model_config = ConfigDict(alias_generator=to_camel)


class _Part(_Camel):
    text: _Text


class _Content(_Camel):
    parts: Annotated[list[_Part], Field(min_length=1)]


class _GeminiOne(_Camel):
    model: _Text
    content: _Content
    task_type: Literal["SEMANTIC_SIMILARITY", "RETRIEVAL_QUERY", "RETRIEVAL_DOCUMENT", "CLASSIFICATION"] | None = None
    title: str | None = None
    output_dimensionality: _Length | None = None


class _GeminiRequest(_Camel):
    requests: Annotated[list[_GeminiOne], Field(min_length=1, max_length=100)]


def gemini_checked(asked: Asked) -> None:
    for one in checked(_GeminiRequest, asked.body).requests:
        if f"/{one.model}:" not in asked.path:
            raise Refused(400, "requests.model: must be that of the path")


def gemini_answer(asked: Asked, said: Said) -> bytes:
    found = [
        {"values": numbers_of("".join(part.text for part in one.content.parts), one.output_dimensionality)}
        for one in _GeminiRequest.model_validate(asked.body).requests
    ]
    return orjson.dumps({"embeddings": found, "usageMetadata": {"promptTokenCount": said.tokens_in}})


class _OllamaRequest(Strict):
    model: _Text
    input: Annotated[list[_Text], Field(min_length=1)]
    truncate: bool = True
    dimensions: _Length | None = None
    keep_alive: str | int | None = None
    options: dict[str, Any] | None = None


def ollama_checked(asked: Asked) -> None:
    checked(_OllamaRequest, asked.body)


def ollama_answer(asked: Asked, said: Said) -> bytes:
    request = _OllamaRequest.model_validate(asked.body)
    found = [numbers_of(text, request.dimensions) for text in request.input]
    times = {"total_duration": 14_143_917, "load_duration": 1_019_500}
    return orjson.dumps({"model": request.model, "embeddings": found, **times, "prompt_eval_count": said.tokens_in})
