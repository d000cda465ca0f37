"""The OpenAI chat completions format: bytes of a question, and what the bytes of an answer mean. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any

import orjson

from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind, kind_of, retry_after_of
from promptlooper.completion import (
    FINISH_REASONS,
    TOOL_CHOICES,
    Completion,
    CompletionRequest,
    Message,
    Tool,
    ToolCall,
)
from promptlooper.jsonvalue import Json

_OURS = frozenset({"model", "messages", "stream", "stream_options", "tools", "tool_choice", "response_format"})
_MOST_TOKENS = 2**31 - 1  # who says more has not counted; sums and costs of these fit into 64 bits
_WANTS_MAX_COMPLETION_TOKENS = re.compile(r"o\d|gpt-[5-9]")
_FINISH_REASONS: Mapping[str, str] = {
    **{reason: reason for reason in FINISH_REASONS},
    "function_call": "tool_calls",
    "max_tokens": "length",
    "eos": "stop",
}


def request_body(model: str, request: CompletionRequest, *, public_openai: bool, stream: bool = False) -> bytes:
    """Raises AttemptFailed where a parameter is not the caller's to set or is no JSON."""
    body: dict[str, Any] = {"model": model, "messages": [_message(message) for message in request.messages]}
    if request.tools:
        body["tools"] = [{"type": "function", "function": _function(tool)} for tool in request.tools]
    if request.tool_choice:
        body["tool_choice"] = _choice(request.tool_choice)
    if request.response_schema is not None:
        named = {"name": "answer", "schema": request.response_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    for name, value in request.params.items():
        if name in _OURS:
            raise AttemptFailed(
                Failure(Kind.PERMANENT, f"the parameter {name!r} is set by the Adapter itself; remove it from 'params'")
            )
        if name == "max_tokens" and public_openai and _WANTS_MAX_COMPLETION_TOKENS.match(model):
            name = "max_completion_tokens"  # their reasoning models refuse the old name
        body[name] = value
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    try:
        return orjson.dumps(body)
    except TypeError as error:
        raise AttemptFailed(Failure(Kind.PERMANENT, f"the request is not JSON: {error}")) from error


def _message(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": message.content}
    if message.tool_calls:
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
        return {"role": message.role, "content": message.content or None, "tool_calls": calls}
    if message.images:
        images = [{"type": "image_url", "image_url": {"url": image}} for image in message.images]
        return {"role": message.role, "content": [{"type": "text", "text": message.content}, *images]}
    return {"role": message.role, "content": message.content}


def _function(tool: Tool) -> dict[str, Any]:
    described = {"description": tool.description} if tool.description else {}
    return {"name": tool.name, **described, "parameters": tool.parameters or {"type": "object", "properties": {}}}


def _choice(name: str) -> Any:
    return name if name in TOOL_CHOICES else {"type": "function", "function": {"name": name}}


def completion_of(body: bytes, model: str, latency_ms: int) -> Completion:
    """The answer in a 200 response. Raises AttemptFailed where there is none."""
    try:
        data = orjson.loads(body)
    except ValueError:
        raise _malformed("the body is not JSON") from None
    if not isinstance(data, dict):
        raise _malformed("the body is not a JSON object")
    choices = data.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise _malformed("there are no choices")
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        raise _malformed("the choice has no message")
    said = choice.get("finish_reason")
    if not isinstance(said, str) or not said:
        raise _malformed("it ended without a finish_reason, so it may be cut off")
    if said == "error":
        raise AttemptFailed(Failure(Kind.TRANSIENT, "the answer broke off with an error"))
    output = _text(message.get("content"))
    if output is None:
        output = _text(message.get("refusal")) or ""
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    cached = count_in(_part(usage, "prompt_tokens_details"), "cached_tokens")
    return Completion(
        output=output,
        model=answered if isinstance(answered := data.get("model"), str) and answered else model,
        finish_reason=_FINISH_REASONS.get(said, "other"),
        tokens_in=count_in(usage, "prompt_tokens"),
        tokens_out=count_in(usage, "completion_tokens"),
        tokens_reasoning=count_in(_part(usage, "completion_tokens_details"), "reasoning_tokens"),
        tokens_cached_in=cached if cached is not None else count_in(usage, "prompt_cache_hit_tokens"),  # DeepSeek
        latency_ms=latency_ms,
        reasoning=_text(message.get("reasoning_content")) or _text(message.get("reasoning")) or None,
        tool_calls=tuple(_tool_calls(message.get("tool_calls"))),
        logprobs=_logprobs(choice.get("logprobs")),
    )


def _tool_calls(calls: object) -> Iterator[ToolCall]:
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _malformed("it asks for a tool without a name")
        arguments = function.get("arguments")
        # Some servers send an object where the format has its text.
        text = arguments if isinstance(arguments, str) else orjson.dumps(arguments or {}).decode()
        yield ToolCall(str(call.get("id") or ""), function["name"], text)


def _logprobs(said: object) -> Json:
    content = said.get("content") if isinstance(said, dict) else None
    if not isinstance(content, list):
        return None
    return [
        {**_logprob(token), "top": [_logprob(other) for other in token.get("top_logprobs") or ()]}
        for token in content
        if isinstance(token, dict)
    ]


def _logprob(token: Mapping[str, Any]) -> dict[str, Json]:
    return {"token": token.get("token"), "logprob": token.get("logprob")}


def error_in(body: bytes) -> int | None:
    """The status of an error that some routers send in a 200 response: 502 where it has none, None without an error."""
    try:
        error = orjson.loads(body).get("error")
    except (ValueError, AttributeError):
        return None
    if not isinstance(error, dict):
        return 502 if isinstance(error, str) else None
    code = error.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 502


def failure_of(
    status: int, headers: Mapping[str, str], body: bytes, *, now: datetime, redacted: Callable[[str], str]
) -> Failure:
    """What an error response means."""
    code, message = _error(body)
    if not message:
        try:
            message = HTTPStatus(status).phrase
        except ValueError:
            message = "an error without a message"
    if 300 <= status < 400:
        message = (
            f"it redirects to {headers.get('location', 'elsewhere')!r}, which is not followed; set its base_url to that"
        )
    return Failure(kind_of(status, code, message), redacted(message), status, retry_after_of(headers, now))


def _error(body: bytes) -> tuple[str, str]:
    """Code and message, from the shapes that servers of this format use."""
    try:
        data = orjson.loads(body)
    except ValueError:
        text = body[:2000].decode("utf-8", "replace").strip()
        return "", "" if text.startswith("<") else text
    error = data.get("error", data) if isinstance(data, dict) else data
    if isinstance(error, str):
        return "", error
    if not isinstance(error, dict):
        return "", ""
    message = error.get("message") or error.get("detail") or ""
    code = error.get("code")
    return (
        code if isinstance(code, str) and code else str(error.get("type") or ""),
        message if isinstance(message, str) else orjson.dumps(message).decode(),
    )


def _malformed(message: str) -> AttemptFailed:
    return AttemptFailed(Failure(Kind.MALFORMED, message, 200))


def _text(content: object) -> str | None:
    """Text, or the text parts of a list (as Mistral sends them)."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(text for part in content if isinstance(part, dict) and isinstance(text := part.get("text"), str))
    return None


def _part(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = usage.get(name)
    return part if isinstance(part, dict) else {}


def count_in(usage: Mapping[str, Any], name: str) -> int | None:
    count = usage.get(name)
    return count if type(count) is int and 0 <= count <= _MOST_TOKENS else None
