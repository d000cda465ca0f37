"""Anthropic's Messages as its public address takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field

from promptlooper.completion import ToolCall
from promptlooper.testing.wires.wire import Asked, Refused, Said, Strict, checked, needed, pieces, sse

_Text = Annotated[str, Field(min_length=1)]
_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
_Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$")]


class _Inline(Strict):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: _Base64


class _Address(Strict):
    type: Literal["url"]
    url: Annotated[str, Field(pattern=r"^https://")]


class _TextBlock(Strict):
    type: Literal["text"]
    text: _Text
    citations: list[dict[str, Any]] | None = None
    cache_control: dict[str, str] | None = None


class _ImageBlock(Strict):
    type: Literal["image"]
    source: Annotated[_Inline | _Address, Field(discriminator="type")]


class _Thinking(Strict):
    type: Literal["thinking"]
    thinking: str
    signature: _Text


class _Redacted(Strict):
    type: Literal["redacted_thinking"]
    data: _Text


class _Use(Strict):
    type: Literal["tool_use"]
    id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$")]
    name: _Name
    input: dict[str, Any]


class _Result(Strict):
    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$")]
    content: str | list[_TextBlock] | None = None
    is_error: bool | None = None


class _User(Strict):
    role: Literal["user"]
    content: _Text | list[Annotated[_TextBlock | _ImageBlock | _Result, Field(discriminator="type")]]


class _Assistant(Strict):
    role: Literal["assistant"]
    content: _Text | list[Annotated[_TextBlock | _Thinking | _Redacted | _Use, Field(discriminator="type")]]


class _Tool(Strict):
    name: _Name
    description: str | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: dict[str, str] | None = None


class _Choice(Strict):
    type: Literal["auto", "any", "none", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _ThinkingConfig(Strict):
    type: Literal["adaptive", "enabled", "disabled"]
    budget_tokens: Annotated[int, Field(ge=1024)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class _Format(Strict):
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class _OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: _Format | None = None


class _Request(Strict):
    model: _Text
    max_tokens: Annotated[int, Field(ge=1)]
    messages: Annotated[list[Annotated[_User | _Assistant, Field(discriminator="role")]], Field(min_length=1)]
    system: str | list[_TextBlock] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[_Text] | None = None
    stream: bool | None = None
    thinking: _ThinkingConfig | None = None
    output_config: _OutputConfig | None = None
    tools: list[_Tool] | None = None
    tool_choice: _Choice | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    cache_control: dict[str, str] | None = None


_VERSIONS = ("2023-01-01", "2023-06-01", "2026-10-21")
_REMOVED = frozenset({"temperature", "top_p", "top_k"})  # in the last of them
_STOP_REASONS: Mapping[str, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "content_filter": "refusal",
    "tool_calls": "tool_use",
    "other": "pause_turn",
}
_ERRORS: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class AnthropicWire:
    type = "anthropic"
    base = ""
    paths: tuple[str, ...] = ("/v1/messages",)

    def check(self, asked: Asked) -> None:
        # Their SDK has sent the key as a bearer token since its version 2.
        if not asked.headers.get("authorization", "").startswith("Bearer "):
            needed(asked, "x-api-key")
        version = needed(asked, "anthropic-version", 400)
        if version not in _VERSIONS:
            raise Refused(400, f"anthropic-version: {version!r} is not a valid version")
        if version == _VERSIONS[-1] and (removed := _REMOVED & set(asked.body)):
            raise Refused(400, f"{', '.join(sorted(removed))}: removed in this version")
        request = checked(_Request, asked.body)
        if request.thinking and request.thinking.type == "enabled":
            if request.thinking.budget_tokens is None or request.thinking.budget_tokens >= request.max_tokens:
                raise Refused(400, "`max_tokens` must be greater than `thinking.budget_tokens`")
            if request.tool_choice and request.tool_choice.type in ("any", "tool"):
                raise Refused(400, "Thinking may not be enabled when tool_choice forces tool use")
        if not request.tools and any(
            isinstance(block, _Use | _Result)
            for message in request.messages
            if isinstance(message.content, list)
            for block in message.content
        ):
            raise Refused(400, "Requests which include `tool_use` or `tool_result` blocks must define tools")
        if request.tool_choice and not request.tools:
            raise Refused(400, "tool_choice may only be specified while providing tools")
        if request.output_config and request.output_config.format:
            check_closed(request.output_config.format.schema_)
        _check_turns(request.messages)

    def streams(self, asked: Asked) -> bool:
        return bool(asked.body.get("stream"))

    def whole(self, asked: Asked, said: Said) -> bytes:
        usage = {**_input_usage(said), **_output_usage(said)}
        return orjson.dumps(_message(asked, content=_blocks(said), stop_reason=_reason(said), usage=usage))

    def stream(self, asked: Asked, said: Said) -> tuple[str, list[bytes]]:
        usage = {**_input_usage(said), "output_tokens": 1}
        message = _message(asked, content=[], stop_reason=None, usage=usage)
        events: list[dict[str, Any]] = [{"type": "message_start", "message": message}, {"type": "ping"}]
        for index, block in enumerate(_blocks(said)):
            begun, deltas = _begun(block)
            events.append({"type": "content_block_start", "index": index, "content_block": begun})
            events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
            events.append({"type": "content_block_stop", "index": index})
        delta = {"stop_reason": _reason(said), "stop_sequence": None}
        events.append({"type": "message_delta", "delta": delta, "usage": _output_usage(said)})
        events.append({"type": "message_stop"})
        return "text/event-stream; charset=utf-8", [sse(event, event["type"]) for event in events]

    def error(self, status: int, message: str) -> bytes:
        error = {"type": _ERRORS.get(status, "api_error"), "message": message}
        return orjson.dumps({"type": "error", "error": error, "request_id": "req_1"})


def _check_turns(messages: list[_User | _Assistant]) -> None:
    """Every call has its result at the beginning of the next turn."""
    waiting: set[str] = set()
    for index, message in enumerate(messages):
        blocks = message.content if isinstance(message.content, list) else []
        results = [block.tool_use_id for block in blocks if isinstance(block, _Result)]
        if set(results) != waiting or len(set(results)) < len(results):
            raise Refused(
                400, f"messages.{index}: each `tool_use` block must have one `tool_result` in the next message"
            )
        if any(not isinstance(block, _Result) for block in blocks[: len(results)]):
            raise Refused(400, f"messages.{index}: `tool_result` blocks must come first")
        waiting = {block.id for block in blocks if isinstance(block, _Use)}
    if waiting:
        raise Refused(400, "the last `tool_use` blocks have no `tool_result`")


def check_closed(schema: Any) -> None:
    """Raises Refused where an object of an answer's schema may have more properties than it names."""
    if isinstance(schema, list):
        for each in schema:
            check_closed(each)
    if isinstance(schema, dict):
        if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
            raise Refused(400, "schema: For 'object' type, 'additionalProperties' must be false")
        for name, part in schema.items():
            if name in ("properties", "$defs") and isinstance(part, dict):
                check_closed(list(part.values()))
            elif name not in ("const", "enum", "default"):
                check_closed(part)


def _message(asked: Asked, **fields: Any) -> dict[str, Any]:
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": asked.body["model"], "stop_sequence": None}
    return {**head, **fields}


def _blocks(said: Said) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if said.reasoning:
        blocks.append({"type": "thinking", "thinking": said.reasoning, "signature": said.signature or "c2lnbmVk"})
    if said.text:
        blocks.append({"type": "text", "text": said.text, "citations": None})
    return [*blocks, *(_use(call) for call in said.tool_calls)]


def _use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": orjson.loads(call.arguments)}


def _begun(block: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block as it begins, and what is added to it."""
    if block["type"] == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"])]
        return {**block, "thinking": "", "signature": ""}, [
            *deltas,
            {"type": "signature_delta", "signature": block["signature"]},
        ]
    if block["type"] == "text":
        return {**block, "text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
    written = orjson.dumps(block["input"]).decode()
    parts = ("", written[:5], written[5:])
    return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": part} for part in parts]


def _reason(said: Said) -> str:
    return "tool_use" if said.tool_calls else _STOP_REASONS[said.finish_reason]


def _input_usage(said: Said) -> dict[str, int]:
    return {
        "input_tokens": said.tokens_in - said.tokens_cached_in - said.tokens_cache_write_in,
        "cache_read_input_tokens": said.tokens_cached_in,
        "cache_creation_input_tokens": said.tokens_cache_write_in,
    }


def _output_usage(said: Said) -> dict[str, Any]:
    details = {"output_tokens_details": {"thinking_tokens": said.tokens_reasoning}} if said.tokens_reasoning else {}
    return {"output_tokens": said.tokens_out, **details}
