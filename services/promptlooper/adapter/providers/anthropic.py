"""The Anthropic Messages dialect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from typing import Any

from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers import anthropic_answer
from promptlooper.adapter.providers.anthropic_format import request_body
from promptlooper.adapter.providers.anthropic_stream import Gathered
from promptlooper.adapter.providers.sse import events_of
from promptlooper.adapter.retrying import Failure
from promptlooper.completion import Completion, CompletionRequest

VERSION = "2023-06-01"  # the next, 2026-10-21, has no temperature, which older models take


class AnthropicMessages:
    headers: Mapping[str, str] = {"anthropic-version": VERSION}

    def __init__(self, base_url: str) -> None:
        # Their own tools take it without the version, others' addresses often have it.
        self._path = "/messages" if base_url.endswith("/v1") else "/v1/messages"

    def path(self, model: str, *, stream: bool) -> str:
        return self._path

    def place(self, key: str) -> Mapping[str, str]:
        return {"x-api-key": key}

    def body(self, model: str, request: CompletionRequest, *, stream: bool) -> bytes:
        return request_body(model, request, stream=stream)

    def is_stream(self, content_type: str) -> bool:
        return content_type.startswith("text/event-stream")

    def events(self, parts: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
        return events_of(parts)

    def gathering(self, heard: Heard) -> Gathered:
        return Gathered(heard)

    def completion(self, body: bytes, model: str, latency_ms: int) -> Completion:
        return anthropic_answer.completion_of(body, model, latency_ms)

    def error_in(self, body: bytes) -> int | None:
        return anthropic_answer.error_in(body)

    def failure(
        self, status: int, headers: Mapping[str, str], body: bytes, *, now: datetime, redacted: Callable[[str], str]
    ) -> Failure:
        return anthropic_answer.failure(status, headers, body, now=now, redacted=redacted)
