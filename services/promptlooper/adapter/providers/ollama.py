"""Ollama's own dialect: it takes what the OpenAI-compatible one of Ollama ignores, such as the context's size."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from typing import Any

import orjson

from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers.bodies import answer_in, image_bytes, made_id, malformed
from promptlooper.adapter.providers.error_bodies import error_in, failure_of
from promptlooper.adapter.providers.headers import bearer
from promptlooper.adapter.providers.kept import keeping, kept_of
from promptlooper.adapter.providers.openai_format import count_in, function_of, logprobs_of, text_of
from promptlooper.adapter.providers.refusal import (
    arguments_object,
    json_bytes,
    no_parameter,
    own_parameter,
    refusal,
)
from promptlooper.adapter.providers.sse import events_of
from promptlooper.adapter.retrying import Failure
from promptlooper.completion import Completion, CompletionRequest, Message, ToolCall

_TAG = "ollama"
_OURS = frozenset({"model", "messages", "stream", "tools", "tool_choice", "format", "response_format"})
_REFUSED = frozenset({"reasoning_tokens", "parallel_tool_calls", "logit_bias", "n", "best_of"})
_BESIDE = frozenset({"think", "logprobs", "top_logprobs", "keep_alive", "truncate", "shift"})
OPTIONS = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop", "num_predict"),
        *("frequency_penalty", "presence_penalty", "repeat_penalty", "repeat_last_n"),
        *("num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap"),
    }
)
_FINISH_REASONS = {"stop": "stop", "length": "length"}


class OllamaChat:
    headers: Mapping[str, str] = {}

    def path(self, model: str, *, stream: bool) -> str:
        return "/api/chat"

    def place(self, key: str) -> Mapping[str, str]:
        return bearer(key)

    def body(self, model: str, request: CompletionRequest, *, stream: bool) -> bytes:
        body: dict[str, Any] = {
            "model": model,
            "messages": [_message(message) for message in request.messages],
            "stream": stream,
            # Otherwise it drops what does not fit of a prompt or an answer, and says nothing.
            "truncate": False,
            "shift": False,
        }
        if request.tools and request.tool_choice != "none":
            body["tools"] = [{"type": "function", "function": function_of(tool)} for tool in request.tools]
        if request.tool_choice not in ("", "auto", "none"):
            raise refusal("Ollama can't be told which tool to call; remove 'tool_choice', or say it in the prompt")
        if request.response_schema is not None:
            body["format"] = request.response_schema
        options: dict[str, Any] = {}
        for name, value in request.params.items():
            _put(body, options, name, value)
        if options:
            body["options"] = options
        return json_bytes(body)

    def is_stream(self, content_type: str) -> bool:
        return content_type.startswith("application/x-ndjson")

    def events(self, parts: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
        return events_of(parts, prefix=b"")

    def gathering(self, heard: Heard) -> Gathered:
        return Gathered(heard)

    def completion(self, body: bytes, model: str, latency_ms: int) -> Completion:
        return _completion_of(body, model, latency_ms)

    def error_in(self, body: bytes) -> int | None:
        return error_in(body)

    def failure(
        self, status: int, headers: Mapping[str, str], body: bytes, *, now: datetime, redacted: Callable[[str], str]
    ) -> Failure:
        return failure_of(status, headers, body, now=now, redacted=redacted)


class Gathered:
    """The last line has everything but what came before it."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._texts: dict[str, list[str]] = {"content": [], "thinking": []}
        self._calls: list[Any] = []
        self._logprobs: list[Any] = []
        self._last: dict[str, Any] = {}
        self.begun = False

    def add(self, event: dict[str, Any]) -> None:
        self._last = event
        self._logprobs += event.get("logprobs") or []
        message = event.get("message")
        if not isinstance(message, dict):
            return
        for name, texts in self._texts.items():
            if isinstance(text := message.get(name), str) and text:
                self.begun = True
                texts.append(text)
                if name == "content":
                    self._heard(text)
                else:
                    self._heard.thought()
        if calls := message.get("tool_calls"):
            self.begun = True
            self._calls += calls
            self._heard.thought()

    def body(self) -> bytes:
        if "error" in self._last:
            return orjson.dumps(self._last)
        message = {**{name: "".join(texts) for name, texts in self._texts.items()}, "tool_calls": self._calls}
        return orjson.dumps({**self._last, "message": message, "logprobs": self._logprobs or None})


def _put(body: dict[str, Any], options: dict[str, Any], name: str, value: Any) -> None:
    if name in _OURS:
        raise own_parameter(name)
    if name == "max_tokens":
        options["num_predict"] = value
    elif name == "stop":
        options["stop"] = [value] if isinstance(value, str) else value
    elif name == "reasoning_effort":
        body["think"] = False if value == "none" else value
    elif name == "options" and isinstance(value, dict):
        options |= value
    elif name in OPTIONS:
        options[name] = value
    elif name in _BESIDE:
        body[name] = value
    elif name in _REFUSED:
        raise no_parameter(name)
    else:
        # It would ignore the name.
        raise no_parameter(name, "write it into 'options' of 'params' if it is an option of Ollama's")


def _message(message: Message) -> dict[str, Any]:
    form: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        form["images"] = [image_bytes(image)[1] for image in message.images]
    if message.role == "tool":
        return {**form, "tool_name": message.name, "tool_call_id": message.tool_call_id}
    if message.tool_calls:
        form["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": arguments_object(call)}}
            for call in message.tool_calls
        ]
    if thinking := kept_of(message.provider_data, _TAG):
        form["thinking"] = thinking
    return form


def _completion_of(body: bytes, model: str, latency_ms: int) -> Completion:
    data = answer_in(body)
    message = data.get("message")
    if data.get("done") is not True or not isinstance(message, dict):
        raise malformed("it ended before it was done, so it may be cut off")
    calls = tuple(_call(call, index) for index, call in enumerate(message.get("tool_calls") or ()))
    reason = _FINISH_REASONS.get(str(data.get("done_reason") or "stop"), "other")
    thinking = message.get("thinking")
    return Completion(
        output=text_of(message.get("content")) or "",
        model=answered if isinstance(answered := data.get("model"), str) and answered else model,
        finish_reason="tool_calls" if calls and reason == "stop" else reason,
        tokens_in=count_in(data, "prompt_eval_count"),
        tokens_out=count_in(data, "eval_count"),
        tokens_cached_in=count_in(data, "prompt_eval_cached_count"),
        latency_ms=latency_ms,
        reasoning=text_of(thinking) or None,
        tool_calls=calls,
        logprobs=logprobs_of({"content": data.get("logprobs")}),
        # Models that think between calls of tools go on from there.
        provider_data=keeping(_TAG, thinking) if thinking and calls else "",
    )


def _call(call: Any, index: int) -> ToolCall:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise malformed("it asks for a tool without a name")
    arguments = orjson.dumps(function.get("arguments") or {}).decode()
    return ToolCall(str(call.get("id") or made_id(index)), function["name"], arguments)
