"""Answers in the Anthropic Messages format. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import orjson

from promptlooper.adapter.providers.anthropic_format import OWNER
from promptlooper.adapter.providers.billing import billed_apart, completed, tier_terms
from promptlooper.adapter.providers.bodies import answer_in, malformed
from promptlooper.adapter.providers.error_bodies import failure_of
from promptlooper.adapter.providers.kept import keeping
from promptlooper.adapter.providers.openai_format import count_in, part_of
from promptlooper.adapter.retrying import Failure, Kind
from promptlooper.adapter.tariff import Billed
from promptlooper.completion import Completion, ToolCall
from promptlooper.jsonvalue import json_text

_FINISH_REASONS: Mapping[str, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_STATUSES: Mapping[str, int] = {  # of errors within a stream, which has its 200 already
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_NO_CREDIT = re.compile(r"credit balance is too low", re.IGNORECASE)


def completion_of(body: bytes, model: str, latency_ms: int) -> Completion:
    """The answer in a 200 response. Raises AttemptFailed where there is none."""
    data = answer_in(body)
    blocks = data.get("content")
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise malformed("there is no content")
    said = data.get("stop_reason")
    if not isinstance(said, str) or not said:
        raise malformed("it ended without a stop_reason, so it may be cut off")
    texts: dict[str, list[str]] = {"text": [], "thinking": []}
    for block in blocks:
        kind = str(block.get("type"))
        if kind in texts and isinstance(block.get(kind), str):
            texts[kind].append(block[kind])
    signed = any(block.get("type") in ("thinking", "redacted_thinking") for block in blocks)
    usage = part_of(data, "usage")
    return completed(
        _billed(usage),
        output="".join(texts["text"]),
        model=answered if isinstance(answered := data.get("model"), str) and answered else model,
        finish_reason=_FINISH_REASONS.get(said, "other"),
        tokens_in=tokens_in(usage),
        tokens_out=count_in(usage, "output_tokens"),
        tokens_reasoning=count_in(part_of(usage, "output_tokens_details"), "thinking_tokens"),
        tokens_cached_in=count_in(usage, "cache_read_input_tokens"),
        tokens_cache_write_in=count_in(usage, "cache_creation_input_tokens"),
        latency_ms=latency_ms,
        reasoning="".join(texts["thinking"]) or None,
        tool_calls=tuple(_call(block) for block in blocks if block.get("type") == "tool_use"),
        provider_data=keeping(OWNER, blocks) if signed else "",
    )


def tokens_in(usage: Mapping[str, Any]) -> int | None:
    """All of them: the format's own count is without what was read from and written to its prompt cache."""
    own = count_in(usage, "input_tokens")
    if own is None:
        return None
    cached = count_in(usage, "cache_read_input_tokens") or 0
    return own + cached + (count_in(usage, "cache_creation_input_tokens") or 0)


def _billed(usage: Mapping[str, Any]) -> Billed | None:
    """Tokens that the prompt cache keeps for an hour, and at which speed or in which tier the call was served."""
    terms = (("speed", "fast"),) if usage.get("speed") == "fast" else tier_terms(usage.get("service_tier"))
    long = count_in(part_of(usage, "cache_creation"), "ephemeral_1h_input_tokens")
    return billed_apart(terms, tokens_cache_write_1h_in=long)


def _call(block: Mapping[str, Any]) -> ToolCall:
    name = block.get("name")
    if not isinstance(name, str) or not name:
        raise malformed("it asks for a tool without a name")
    arguments = block.get("input")
    # A stream's parts of JSON are kept as they were written, which may be no JSON.
    return ToolCall(str(block.get("id") or ""), name, arguments if isinstance(arguments, str) else json_text(arguments))


def error_in(body: bytes) -> int | None:
    """The status of an error that came in a stream."""
    try:
        error = orjson.loads(body).get("error")
    except (ValueError, AttributeError):
        return None
    return _STATUSES.get(str(error.get("type")), 502) if isinstance(error, dict) else None


def failure(
    status: int, headers: Mapping[str, str], body: bytes, *, now: datetime, redacted: Callable[[str], str]
) -> Failure:
    said = failure_of(status, headers, body, now=now, redacted=redacted)
    return replace(said, kind=Kind.CREDENTIALS) if _NO_CREDIT.search(said.message) else said
