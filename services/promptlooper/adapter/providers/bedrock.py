"""The dialect of AWS Bedrock's Converse: one for all of its models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

import orjson

from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers.aws_events import events_of
from promptlooper.adapter.providers.bedrock_format import completion_of, request_body
from promptlooper.adapter.providers.error_bodies import error_in, failure_of
from promptlooper.adapter.providers.headers import bearer
from promptlooper.adapter.providers.openai_format import count_in
from promptlooper.adapter.retrying import Failure, Kind
from promptlooper.completion import Completion, CompletionRequest

_STATUSES = {
    "throttlingException": 429,
    "validationException": 400,
    "modelStreamErrorException": 424,
    "internalServerException": 500,
    "serviceUnavailableException": 503,
}


class BedrockConverse:
    headers: Mapping[str, str] = {}

    def path(self, model: str, *, stream: bool) -> str:
        # The HTTP client sends a colon as it is, encoded or not, and the signature must be over what is sent.
        return f"/model/{quote(model, safe=':')}/converse{'-stream' if stream else ''}"

    def place(self, key: str) -> Mapping[str, str]:
        return bearer(key)

    def body(self, model: str, request: CompletionRequest, *, stream: bool) -> bytes:
        return request_body(model, request)

    def is_stream(self, content_type: str) -> bool:
        return content_type.startswith("application/vnd.amazon.eventstream")

    def events(self, parts: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
        return events_of(parts)

    def gathering(self, heard: Heard) -> Gathered:
        return Gathered(heard)

    def completion(self, body: bytes, model: str, latency_ms: int) -> Completion:
        return completion_of(body, model, latency_ms)

    def error_in(self, body: bytes) -> int | None:
        """Of an exception in a stream."""
        return error_in(body, _STATUSES)

    def failure(
        self, status: int, headers: Mapping[str, str], body: bytes, *, now: datetime, redacted: Callable[[str], str]
    ) -> Failure:
        failure = failure_of(status, headers, body, now=now, redacted=redacted)
        # A model's own error: another try may do.
        return replace(failure, kind=Kind.TRANSIENT) if status == 424 else failure


class Gathered:
    """Puts the blocks together as they are in an answer that comes at once."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._blocks: dict[int, dict[str, Any]] = {}
        self._end: dict[str, Any] = {}
        self._error: dict[str, Any] | None = None
        self.begun = False

    def add(self, event: dict[str, Any]) -> None:
        kind = event[":event"]
        if kind == "contentBlockStart":
            self._begin(self._block(event), event.get("start") or {})
        elif kind == "contentBlockDelta":
            self._add(self._block(event), event.get("delta") or {})
        elif kind == "messageStop":
            self._end["stopReason"] = event.get("stopReason")
        elif kind == "metadata":
            self._end |= {name: event[name] for name in ("usage", "serviceTier", "performanceConfig") if name in event}
            usage = event.get("usage") or {}
            self._heard.used(tokens_in=count_in(usage, "inputTokens"), tokens_out=count_in(usage, "outputTokens"))
        elif kind == "exception":
            self._error = {"code": event["code"], "message": event["message"]}

    def _block(self, event: dict[str, Any]) -> dict[str, Any]:
        return self._blocks.setdefault(event.get("contentBlockIndex", 0), {})

    def _begin(self, block: dict[str, Any], start: dict[str, Any]) -> None:
        if isinstance(tool := start.get("toolUse"), dict):
            block["toolUse"] = {**tool, "input": ""}

    def _add(self, block: dict[str, Any], delta: dict[str, Any]) -> None:
        self.begun = True
        if text := delta.get("text"):
            block["text"] = block.get("text", "") + text
            self._heard(text)
            return
        self._heard.thought()
        if isinstance(tool := delta.get("toolUse"), dict) and "toolUse" in block:
            block["toolUse"]["input"] += tool.get("input") or ""
        if isinstance(said := delta.get("reasoningContent"), dict):
            _add_reasoning(block.setdefault("reasoningContent", {}), said)

    def body(self) -> bytes:
        if self._error is not None:
            return orjson.dumps({"error": self._error})
        content = [self._blocks[index] for index in sorted(self._blocks)]
        return orjson.dumps({"output": {"message": {"role": "assistant", "content": content}}, **self._end})


def _add_reasoning(reasoning: dict[str, Any], delta: dict[str, Any]) -> None:
    if redacted := delta.get("redactedContent"):
        reasoning["redactedContent"] = reasoning.get("redactedContent", "") + redacted
        return
    text = reasoning.setdefault("reasoningText", {"text": ""})
    text["text"] += delta.get("text") or ""
    if signature := delta.get("signature"):
        text["signature"] = text.get("signature", "") + signature
