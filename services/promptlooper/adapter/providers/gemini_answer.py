"""Answers in the Gemini generateContent format. No I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import orjson

from promptlooper.adapter.providers.billing import billed_apart, completed
from promptlooper.adapter.providers.bodies import answer_in, made_id, malformed
from promptlooper.adapter.providers.error_bodies import failure_of
from promptlooper.adapter.providers.gemini_format import OWNER
from promptlooper.adapter.providers.kept import keeping
from promptlooper.adapter.providers.openai_format import count_in, part_of
from promptlooper.adapter.retrying import Failure, Kind
from promptlooper.adapter.tariff import Billed
from promptlooper.completion import Completion, ToolCall
from promptlooper.jsonvalue import Json, json_text

_FINISH_REASONS: Mapping[str, str] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    **dict.fromkeys(
        (
            *("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR"),
            *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"),
        ),
        "content_filter",
    ),
}
_MALFORMED = ("MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE")  # Google could not read what the model wrote
_KEY_REASONS = frozenset({"API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED"})
_APART = (
    ("promptTokensDetails", "tokens_{}_in"),
    ("toolUsePromptTokensDetails", "tokens_{}_in"),
    ("cacheTokensDetails", "tokens_cached_{}_in"),
    ("candidatesTokensDetails", "tokens_{}_out"),
)
_MODALITIES = {"IMAGE": "image", "DOCUMENT": "image", "AUDIO": "audio"}
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)s")


def completion_of(body: bytes, model: str, latency_ms: int) -> Completion:
    """The answer in a 200 response. Raises AttemptFailed where there is none."""
    data = answer_in(body)
    answered = data.get("modelVersion")
    model = answered if isinstance(answered, str) and answered else model
    usage = part_of(data, "usageMetadata")
    candidates = data.get("candidates")
    if not (isinstance(candidates, list) and candidates and isinstance(candidates[0], dict)):
        feedback = data.get("promptFeedback")
        if isinstance(feedback, dict) and feedback.get("blockReason"):  # the question was refused
            refused = {"output": "", "finish_reason": "content_filter"}
            return completed(_billed(usage), model=model, latency_ms=latency_ms, **refused, **_counts(usage))
        raise malformed("there are no candidates")
    candidate = candidates[0]
    said = candidate.get("finishReason")
    if not isinstance(said, str) or not said:
        raise malformed("it ended without a finishReason, so it may be cut off")
    if said in _MALFORMED:
        raise malformed(f"it ended with {said}")
    parts = _parts(candidate)
    calls = tuple(_call(part["functionCall"], index) for index, part in enumerate(parts) if "functionCall" in part)
    finish_reason = _FINISH_REASONS.get(said, "other")
    return completed(
        _billed(usage),
        output=_text(parts, thought=False),
        model=model,
        finish_reason="tool_calls" if calls and finish_reason == "stop" else finish_reason,
        latency_ms=latency_ms,
        reasoning=_text(parts, thought=True) or None,
        tool_calls=calls,
        logprobs=_logprobs(candidate.get("logprobsResult")),
        provider_data=_kept(parts),
        **_counts(usage),
    )


def _parts(candidate: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def _text(parts: Sequence[Mapping[str, Any]], *, thought: bool) -> str:
    texts = (part.get("text") for part in parts if bool(part.get("thought")) is thought)
    return "".join(text for text in texts if isinstance(text, str))


def _call(call: object, index: int) -> ToolCall:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise malformed("it asks for a tool without a name")
    return ToolCall(str(call.get("id") or made_id(index)), call["name"], json_text(call.get("args") or {}))


def _kept(parts: Sequence[Mapping[str, Any]]) -> str:
    """The parts where one is signed; with an id for every call, as the answers to them have."""
    if not any(part.get("thoughtSignature") for part in parts):
        return ""
    kept = [
        {**part, "functionCall": {"id": made_id(index), **part["functionCall"]}} if "functionCall" in part else part
        for index, part in enumerate(parts)
    ]
    return keeping(OWNER, kept)


def _counts(usage: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens, as fields of a Completion."""
    tokens_in, tokens_out = used(usage)
    return {
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "tokens_reasoning": count_in(usage, "thoughtsTokenCount"),
        "tokens_cached_in": count_in(usage, "cachedContentTokenCount"),
    }


def _billed(usage: Mapping[str, Any]) -> Billed | None:
    """Tokens that are not of text."""
    counts: Counter[str] = Counter()
    for said, name in _APART:
        details = usage.get(said)
        for part in details if isinstance(details, list) else ():
            if isinstance(part, dict) and (modality := _MODALITIES.get(str(part.get("modality")))):
                counts[name.format(modality)] += count_in(part, "tokenCount") or 0
    return billed_apart((), **counts)


def used(usage: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Tokens in and out. A count of 0 is not sent, but a prompt has always some. Results of tools that ran at the
    provider are input, and its own count of the answer is without what was thought."""
    prompt = count_in(usage, "promptTokenCount")
    if prompt is None:
        return None, None
    answer = count_in(usage, "candidatesTokenCount") or 0
    return prompt + (count_in(usage, "toolUsePromptTokenCount") or 0), answer + (
        count_in(usage, "thoughtsTokenCount") or 0
    )


def _logprobs(said: object) -> Json:
    chosen = said.get("chosenCandidates") if isinstance(said, dict) else None
    if not isinstance(said, dict) or not isinstance(chosen, list):
        return None
    tops = said.get("topCandidates") or []
    return [
        {**_logprob(token), "top": [_logprob(other) for other in _at(tops, index)]}
        for index, token in enumerate(chosen)
        if isinstance(token, dict)
    ]


def _at(tops: Sequence[Mapping[str, Any]], index: int) -> Sequence[Mapping[str, Any]]:
    return tops[index].get("candidates") or () if index < len(tops) else ()


def _logprob(token: Mapping[str, Any]) -> dict[str, Json]:
    return {"token": token.get("token"), "logprob": token.get("logProbability")}


def failure(
    status: int, headers: Mapping[str, str], body: bytes, *, now: datetime, redacted: Callable[[str], str]
) -> Failure:
    """A wrong key is a 400 here, and how long to wait stands in the body."""
    error = _error(body)
    said = failure_of(status, headers, orjson.dumps({"error": error}) if error else body, now=now, redacted=redacted)
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, dict):
            continue
        if str(detail.get("reason")) in _KEY_REASONS:
            said = replace(said, kind=Kind.CREDENTIALS, status=401)  # so that the key is not sent again
        delay = _SECONDS.fullmatch(str(detail.get("retryDelay")))
        if delay is not None and said.retry_after is None:
            said = replace(said, retry_after=float(delay[1]))
    return said


def _error(body: bytes) -> dict[str, Any]:
    """Some answers are a list of it."""
    try:
        data = orjson.loads(body)
    except ValueError:
        return {}
    first = data[0] if isinstance(data, list) and data else data
    error = first.get("error") if isinstance(first, dict) else None
    return error if isinstance(error, dict) else {}
