"""The Gemini generateContent dialect: Google's Gemini API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers import gemini_answer
from promptlooper.adapter.providers.error_bodies import error_in
from promptlooper.adapter.providers.gemini_format import request_body
from promptlooper.adapter.providers.gemini_stream import Gathered
from promptlooper.adapter.providers.sse import events_of
from promptlooper.adapter.retrying import Failure
from promptlooper.completion import Completion, CompletionRequest

_VERSION = "/v1beta"
_KINDS = ("models", "tunedModels")


def version_of(base_url: str) -> str:
    """What comes first in a path: their own tools take an address without the version, others' often have it."""
    return "" if base_url.rpartition("/")[2] in ("v1", "v1beta", "v1alpha") else _VERSION


def path_of(model: str) -> str:
    kind, name = resource_of(model)
    return f"{kind}/{quote(name, safe='')}"


def resource_of(model: str) -> tuple[str, str]:
    """Kind and name."""
    kind, slash, name = model.partition("/")
    return (kind, name) if slash and kind in _KINDS else ("models", model)


class GeminiGenerateContent:
    headers: Mapping[str, str] = {}

    def __init__(self, base_url: str) -> None:
        self._before = version_of(base_url)

    def path(self, model: str, *, stream: bool) -> str:
        verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
        return f"{self._before}/{path_of(model)}:{verb}"

    def place(self, key: str) -> Mapping[str, str]:
        return {"x-goog-api-key": key}

    def body(self, model: str, request: CompletionRequest, *, stream: bool) -> bytes:
        return request_body(model, request)

    def is_stream(self, content_type: str) -> bool:
        return content_type.startswith("text/event-stream")

    def events(self, parts: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
        return events_of(parts)

    def gathering(self, heard: Heard) -> Gathered:
        return Gathered(heard)

    def completion(self, body: bytes, model: str, latency_ms: int) -> Completion:
        return gemini_answer.completion_of(body, model, latency_ms)

    def error_in(self, body: bytes) -> int | None:
        return error_in(body)

    def failure(
        self, status: int, headers: Mapping[str, str], body: bytes, *, now: datetime, redacted: Callable[[str], str]
    ) -> Failure:
        return gemini_answer.failure(status, headers, body, now=now, redacted=redacted)
