"""The OpenAI Responses dialect. No state is kept there: every question says all, and reasoning comes back encrypted."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import orjson

from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers.billing import completed
from promptlooper.adapter.providers.bodies import answer_in, malformed
from promptlooper.adapter.providers.error_bodies import error_in, failure_of
from promptlooper.adapter.providers.headers import bearer
from promptlooper.adapter.providers.kept import keeping, kept_of
from promptlooper.adapter.providers.openai_format import billed_of, count_in, logprobs_of, part_of
from promptlooper.adapter.providers.refusal import json_bytes, no_parameter, own_parameter, put
from promptlooper.adapter.providers.sse import events_of
from promptlooper.adapter.providers.strict_schema import allows_strict
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind
from promptlooper.completion import TOOL_CHOICES, Completion, CompletionRequest, Message, Tool, ToolCall

_TAG = "openai_responses"
_OURS = frozenset(
    {
        *("model", "input", "instructions", "stream", "tools", "tool_choice", "response_format"),
        *("store", "background", "previous_response_id", "conversation", "prompt"),  # state that is kept elsewhere
    }
)
_REFUSED = frozenset(
    {
        *("top_k", "seed", "stop", "frequency_penalty", "presence_penalty", "logit_bias", "n", "best_of"),
        *("reasoning_tokens", "modalities", "audio", "functions", "function_call"),
    }
)
_RENAMED = {"max_tokens": "max_output_tokens", "reasoning_effort": "reasoning.effort", "verbosity": "text.verbosity"}
# gpt-5-chat and its like do not reason, and refuse to be asked for it.
_REASONS = re.compile(r"(?:ft:)?(?:o\d|gpt-(?:[5-9]|\d\d)(?!.*-chat)|codex)")
_ENCRYPTED = "reasoning.encrypted_content"
_LOGPROBS = "message.output_text.logprobs"
_STATUSES = {"server_error": 500, "vector_store_timeout": 504, "rate_limit_exceeded": 429, "insufficient_quota": 429}
_SPECIAL = _OURS | _REFUSED | frozenset(_RENAMED) | {"logprobs", "include"}


class OpenAIResponses:
    headers: Mapping[str, str] = {}

    def path(self, model: str, *, stream: bool) -> str:
        return "/responses"

    def place(self, key: str) -> Mapping[str, str]:
        return bearer(key)

    def body(self, model: str, request: CompletionRequest, *, stream: bool) -> bytes:
        return _request_body(model, request, stream)

    def is_stream(self, content_type: str) -> bool:
        return content_type.startswith("text/event-stream")

    def events(self, parts: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
        return events_of(parts)

    def gathering(self, heard: Heard) -> Gathered:
        return Gathered(heard)

    def completion(self, body: bytes, model: str, latency_ms: int) -> Completion:
        return _completion_of(body, model, latency_ms)

    def error_in(self, body: bytes) -> int | None:
        """Also of an answer that failed: it has an error with a word for its code."""
        return error_in(body, _STATUSES, 400)  # the others blame the question

    def failure(
        self, status: int, headers: Mapping[str, str], body: bytes, *, now: datetime, redacted: Callable[[str], str]
    ) -> Failure:
        return failure_of(status, headers, body, now=now, redacted=redacted)


class Gathered:
    """The last event of a stream has the whole answer; those before it are for who listens."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._last: Mapping[str, Any] = {}
        self.begun = False

    def add(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind == "response.output_text.delta" and isinstance(delta := event.get("delta"), str) and delta:
            self.begun = True
            self._heard(delta)
        elif isinstance(kind, str) and kind.endswith(".delta"):  # a refusal, reasoning, arguments of a tool
            self.begun = True
            self._heard.thought()
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            self._last = part_of(event, "response")
        elif kind == "error":
            self._last = {"error": event.get("error") or {"code": event.get("code"), "message": event.get("message")}}

    def body(self) -> bytes:
        return orjson.dumps(self._last)


def _request_body(model: str, request: CompletionRequest, stream: bool) -> bytes:
    items = [item for message in request.messages for item in _items(message)]
    body: dict[str, Any] = {"model": model, "input": items, "store": False}
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
    if choice := request.tool_choice:
        body["tool_choice"] = choice if choice in TOOL_CHOICES else {"type": "function", "name": choice}
    include: list[Any] = [_ENCRYPTED] if _REASONS.match(model) else []
    body |= {name: value for name, value in request.params.items() if name not in _SPECIAL}
    for name in [name for name in request.params if name in _SPECIAL]:
        value = request.params[name]
        if name in _OURS:
            raise own_parameter(name)
        if name in _RENAMED:
            put(body, _RENAMED[name], value)
        elif name == "logprobs":
            include += [_LOGPROBS] if value else []
        elif name == "include":
            include += [each for each in value if each not in include] if isinstance(value, list) else [value]
        else:
            raise no_parameter(name, "remove it from 'params', or ask the same model with 'type: openai'")
    if include:
        body["include"] = include
    if request.response_schema is not None:
        schema = request.response_schema
        strict = allows_strict(schema)
        put(body, "text.format", {"type": "json_schema", "name": "answer", "schema": schema, "strict": strict})
    if stream:
        body["stream"] = True
    return json_bytes(body)


def _items(message: Message) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        yield {"type": "function_call_output", "call_id": message.tool_call_id, "output": message.content}
        return
    if message.role == "assistant":
        yield from _said(message)
        return
    if not message.images:
        yield {"role": message.role, "content": message.content}
        return
    images = [{"type": "input_image", "image_url": image} for image in message.images]
    yield {"role": message.role, "content": [{"type": "input_text", "text": message.content}, *images]}


def _said(message: Message) -> Iterator[dict[str, Any]]:
    """What was answered before, with the reasoning where it stood."""
    texts = iter([{"type": "message", "role": "assistant", "content": message.content}] if message.content else [])
    calls = iter(
        {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}
        for call in message.tool_calls
    )
    for place in kept_of(message.provider_data, _TAG) or ():
        if isinstance(place, dict):
            yield place
        else:
            yield from _next(texts if place == "message" else calls)
    yield from texts
    yield from calls


def _next(items: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    item = next(items, None)
    if item is not None:
        yield item


def _tool(tool: Tool) -> dict[str, Any]:
    parameters = tool.parameters or {"type": "object", "properties": {}}
    described = {"description": tool.description} if tool.description else {}
    # Unlike in chat completions, `strict` is the default here, and refuses most schemas.
    return {"type": "function", "name": tool.name, **described, "parameters": parameters, "strict": False}


def _completion_of(body: bytes, model: str, latency_ms: int) -> Completion:
    """Raises AttemptFailed where there is no answer."""
    data = answer_in(body)
    status, output = data.get("status"), data.get("output")
    if status == "failed" or (status is None and data.get("error")):
        raise AttemptFailed(Failure(Kind.TRANSIENT, "the answer broke off with an error", 200))
    if not isinstance(output, list) or status not in ("completed", "incomplete"):
        raise malformed("it ended before it was completed, so it may be cut off")
    items = [item for item in output if isinstance(item, dict)]
    calls = tuple(_call(item) for item in items if item.get("type") == "function_call")
    usage = part_of(data, "usage")
    of_input, of_output = part_of(usage, "input_tokens_details"), part_of(usage, "output_tokens_details")
    return completed(
        billed_of(of_input, of_output, data),
        output="".join(_texts(items, "output_text", "text")) or "".join(_texts(items, "refusal", "refusal")),
        model=answered if isinstance(answered := data.get("model"), str) and answered else model,
        finish_reason=_finish_reason(status, part_of(data, "incomplete_details").get("reason"), bool(calls)),
        tokens_in=count_in(usage, "input_tokens"),
        tokens_out=count_in(usage, "output_tokens"),
        tokens_reasoning=count_in(of_output, "reasoning_tokens"),
        tokens_cached_in=count_in(of_input, "cached_tokens"),
        tokens_cache_write_in=count_in(of_input, "cache_write_tokens"),
        latency_ms=latency_ms,
        reasoning=_reasoning(items),
        tool_calls=calls,
        logprobs=_logprobs(items),
        provider_data=_kept(items),
    )


def _finish_reason(status: str, why: object, calls: bool) -> str:
    if status == "incomplete":
        return {"max_output_tokens": "length", "content_filter": "content_filter"}.get(str(why), "other")
    return "tool_calls" if calls else "stop"


def _call(item: Mapping[str, Any]) -> ToolCall:
    name, arguments = item.get("name"), item.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise malformed("it asks for a tool without a name")
    return ToolCall(str(item.get("call_id") or ""), name, arguments)


def _parts(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in items:
        if item.get("type") == "message":
            yield from (part for part in item.get("content") or () if isinstance(part, dict))


def _texts(items: list[dict[str, Any]], kind: str, name: str) -> Iterator[str]:
    yield from (text for part in _parts(items) if part.get("type") == kind and isinstance(text := part.get(name), str))


def _reasoning(items: list[dict[str, Any]]) -> str | None:
    """The model's own words where they are shown, else their summary."""
    for name in ("content", "summary"):
        parts = [part for item in items if item.get("type") == "reasoning" for part in item.get(name) or ()]
        if texts := [text for part in parts if isinstance(part, dict) and isinstance(text := part.get("text"), str)]:
            return "\n\n".join(texts)
    return None


def _logprobs(items: list[dict[str, Any]]) -> Any:
    tokens = [token for part in _parts(items) for token in part.get("logprobs") or ()]
    return logprobs_of({"content": tokens}) if tokens else None


def _kept(items: list[dict[str, Any]]) -> str:
    """Encrypted reasoning, and between it what is known already by its kind alone."""
    if not any(item.get("encrypted_content") for item in items):
        return ""
    fields = ("type", "id", "summary", "encrypted_content")
    return keeping(
        _TAG,
        [
            {name: item[name] for name in fields if name in item}
            if item.get("type") == "reasoning"
            else item.get("type")
            for item in items
        ],
    )
