"""The OpenAI chat completions dialect: OpenAI, vLLM, llama.cpp, Ollama and their like."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from typing import Any

from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers.error_bodies import error_in, failure_of
from promptlooper.adapter.providers.headers import bearer
from promptlooper.adapter.providers.openai_format import completion_of, request_body
from promptlooper.adapter.providers.openai_stream import Gathered
from promptlooper.adapter.providers.quirks import Quirks
from promptlooper.adapter.providers.sse import events_of
from promptlooper.adapter.retrying import Failure
from promptlooper.completion import Completion, CompletionRequest


class OpenAIChat:
    headers: Mapping[str, str] = {}

    def __init__(self, quirks: Quirks) -> None:
        self._quirks = quirks

    def path(self, model: str, *, stream: bool) -> str:
        return "/chat/completions"

    def place(self, key: str) -> Mapping[str, str]:
        return bearer(key)

    def body(self, model: str, request: CompletionRequest, *, stream: bool) -> bytes:
        return request_body(model, request, self._quirks, stream=stream)

    def is_stream(self, content_type: str) -> bool:
        return content_type.startswith("text/event-stream")

    def events(self, parts: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
        return events_of(parts)

    def gathering(self, heard: Heard) -> Gathered:
        return Gathered(heard)

    def completion(self, body: bytes, model: str, latency_ms: int) -> Completion:
        return completion_of(body, model, latency_ms, self._quirks.kept)

    def error_in(self, body: bytes) -> int | None:
        return error_in(body)

    def failure(
        self, status: int, headers: Mapping[str, str], body: bytes, *, now: datetime, redacted: Callable[[str], str]
    ) -> Failure:
        return failure_of(status, headers, body, now=now, redacted=redacted)
