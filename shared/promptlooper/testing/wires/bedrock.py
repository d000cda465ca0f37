"""AWS Bedrock's Converse: keys as bearer tokens or signatures, answers at once or as an event stream."""

from __future__ import annotations

from itertools import pairwise
from struct import pack
from typing import Annotated, Any, Literal
from zlib import crc32

import orjson
from pydantic import Field

from promptlooper.testing.wires.anthropic import check_closed
from promptlooper.testing.wires.sigv4 import signature_problem
from promptlooper.testing.wires.wire import Asked, Refused, Said, Strict, checked, needed, pieces

_Text = Annotated[str, Field(min_length=1)]


class _SystemText(Strict):
    text: _Text


class _Bytes(Strict):
    bytes: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+=*$")]


class _Image(Strict):
    format: Literal["png", "jpeg", "gif", "webp"]
    source: _Bytes


class _ToolUse(Strict):
    toolUseId: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:-]{1,64}$")]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    input: dict[str, Any]


class _ToolResult(Strict):
    toolUseId: _Text
    content: Annotated[list[_SystemText], Field(min_length=1)]


class _ReasoningText(Strict):
    text: str
    signature: str | None = None


class _Reasoning(Strict):
    reasoningText: _ReasoningText | None = None
    redactedContent: str | None = None


class _Block(Strict):
    text: _Text | None = None
    image: _Image | None = None
    toolUse: _ToolUse | None = None
    toolResult: _ToolResult | None = None
    reasoningContent: _Reasoning | None = None


class _Turn(Strict):
    role: Literal["user", "assistant"]
    content: Annotated[list[_Block], Field(min_length=1)]


class _Inference(Strict):
    maxTokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    topP: float | None = None
    stopSequences: list[_Text] | None = None


class _Schema(Strict):
    json_: Annotated[dict[str, Any], Field(alias="json")]


class _Spec(Strict):
    name: _Text
    description: _Text | None = None
    inputSchema: _Schema


class _Tool(Strict):
    toolSpec: _Spec


class _Empty(Strict):
    pass


class _Named(Strict):
    name: _Text


class _Choice(Strict):
    auto: _Empty | None = None
    any: _Empty | None = None
    tool: _Named | None = None


class _Tools(Strict):
    tools: Annotated[list[_Tool], Field(min_length=1)]
    toolChoice: _Choice | None = None


class _Request(Strict):
    messages: Annotated[list[_Turn], Field(min_length=1)]
    system: list[_SystemText] | None = None
    inferenceConfig: _Inference | None = None
    toolConfig: _Tools | None = None
    outputConfig: dict[str, Any] | None = None
    additionalModelRequestFields: dict[str, Any] | None = None
    guardrailConfig: dict[str, Any] | None = None


class BedrockWire:
    type = "bedrock"
    base = ""
    paths = ("/model/{model}/converse", "/model/{model}/converse-stream")
    secret = "wJalrXUtnFEMI/canary/EXAMPLEKEY"
    """Of the access key whose signatures are good."""

    def check(self, asked: Asked) -> None:
        authorization = needed(asked, "authorization", 403)
        if not authorization.startswith("Bearer ") and (problem := signature_problem(asked, self.secret)):
            raise Refused(403, problem)
        turns = checked(_Request, asked.body).messages
        if any(first.role == second.role for first, second in pairwise(turns)):
            raise Refused(400, "A conversation must alternate between user and assistant roles.")
        if text_format := (asked.body.get("outputConfig") or {}).get("textFormat"):
            check_closed(orjson.loads(text_format["structure"]["jsonSchema"]["schema"]))
        blocks = [block for turn in turns for block in turn.content]
        if "toolConfig" not in asked.body and any(block.toolUse or block.toolResult for block in blocks):
            raise Refused(400, "The toolConfig field must be defined when using toolUse and toolResult content blocks.")

    def streams(self, asked: Asked) -> bool:
        return asked.path.endswith("/converse-stream")

    def whole(self, asked: Asked, said: Said) -> bytes:
        content = [*_reasoning(said), *([{"text": said.text}] if said.text else [])]
        for call in said.tool_calls:
            tool = {"toolUseId": call.id, "name": call.name, "input": orjson.loads(call.arguments)}
            content.append({"toolUse": tool})
        message = {"role": "assistant", "content": content}
        return orjson.dumps({"output": {"message": message}, "stopReason": _reason(said), **_usage(said)})

    def stream(self, asked: Asked, said: Said) -> tuple[str, list[bytes]]:
        blocks: list[tuple[dict[str, Any] | None, list[dict[str, Any]]]] = []
        if said.reasoning:
            deltas = [{"reasoningContent": {"text": piece}} for piece in pieces(said.reasoning)]
            blocks.append((None, [*deltas, {"reasoningContent": {"signature": said.signature}}]))
        if said.text:
            blocks.append((None, [{"text": piece} for piece in pieces(said.text)]))
        for call in said.tool_calls:
            halves = [{"toolUse": {"input": half}} for half in (call.arguments[:5], call.arguments[5:])]
            blocks.append(({"toolUse": {"toolUseId": call.id, "name": call.name}}, halves))
        events = [event("messageStart", {"role": "assistant"})]
        for index, (start, deltas) in enumerate(blocks):
            at = {"contentBlockIndex": index}
            if start:
                events.append(event("contentBlockStart", {"start": start, **at}))
            events += [event("contentBlockDelta", {"delta": delta, **at}) for delta in deltas]
            events.append(event("contentBlockStop", at))
        events += [event("messageStop", {"stopReason": _reason(said)}), event("metadata", _usage(said))]
        return "application/vnd.amazon.eventstream", events

    def error(self, status: int, message: str) -> bytes:
        return orjson.dumps({"message": message})


def event(kind: str, payload: object, *, message_type: str = "event") -> bytes:
    """A message of an event stream."""
    said = {f":{message_type}-type": kind, ":content-type": "application/json", ":message-type": message_type}
    headers = b"".join(_string(name) + b"\7" + pack(">H", len(value)) + value.encode() for name, value in said.items())
    body = orjson.dumps(payload)
    prelude = pack(">II", 12 + len(headers) + len(body) + 4, len(headers))
    message = prelude + pack(">I", crc32(prelude)) + headers + body
    return message + pack(">I", crc32(message))


def _string(name: str) -> bytes:
    return bytes([len(name)]) + name.encode()


def _reasoning(said: Said) -> list[dict[str, Any]]:
    if not said.reasoning:
        return []
    return [{"reasoningContent": {"reasoningText": {"text": said.reasoning, "signature": said.signature}}}]


def _reason(said: Said) -> str:
    reasons = {"stop": "end_turn", "length": "max_tokens", "content_filter": "guardrail_intervened"}
    return "tool_use" if said.tool_calls else reasons.get(said.finish_reason, "end_turn")


def _usage(said: Said) -> dict[str, Any]:
    usage = {
        "inputTokens": said.tokens_in - said.tokens_cached_in - said.tokens_cache_write_in,
        "outputTokens": said.tokens_out,
        "totalTokens": said.tokens_in + said.tokens_out,
        "cacheReadInputTokens": said.tokens_cached_in,
        "cacheWriteInputTokens": said.tokens_cache_write_in,
    }
    return {"usage": usage, "metrics": {"latencyMs": 5}}
