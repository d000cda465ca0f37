"""AWS Bedrock's Converse format: bytes of a question, and what the bytes of an answer mean. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from promptlooper.adapter.providers.billing import billed_apart, completed, tier_terms
from promptlooper.adapter.providers.bodies import answer_in, id_of, image_bytes, malformed, tools_of
from promptlooper.adapter.providers.closed_schema import closed
from promptlooper.adapter.providers.kept import keeping, kept_of
from promptlooper.adapter.providers.openai_format import count_in, part_of
from promptlooper.adapter.providers.refusal import arguments_object, json_bytes, no_parameter, put, refusal
from promptlooper.adapter.tariff import Billed
from promptlooper.completion import Completion, CompletionRequest, Message, Tool, ToolCall

_TAG = "bedrock"
_RENAMED = {
    "max_tokens": "inferenceConfig.maxTokens",
    "temperature": "inferenceConfig.temperature",
    "top_p": "inferenceConfig.topP",
    "reasoning_effort": "outputConfig.effort",
}
_THEIRS = frozenset(
    {
        *("additionalModelRequestFields", "guardrailConfig", "requestMetadata", "performanceConfig", "serviceTier"),
        *("promptVariables", "inferenceConfig", "outputConfig", "projectIdentifier"),
    }
)
_ID = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_IMAGES = {f"image/{name}": name for name in ("png", "jpeg", "gif", "webp")}
_HINT = "remove it from 'params', or write the model's own into 'additionalModelRequestFields'"
_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}
_MALFORMED = ("malformed_model_output", "malformed_tool_use")  # AWS could not read what the model wrote


def request_body(model: str, request: CompletionRequest) -> bytes:
    """Raises AttemptFailed for what Converse cannot do; it would ignore the name of what it does not know."""
    turns = list(request.messages)
    body: dict[str, Any] = {}
    while turns and turns[0].role == "system":
        body.setdefault("system", []).append({"text": turns.pop(0).content})
    body["messages"] = _turns(turns)
    if tools := tools_of(request):
        body["toolConfig"] = _tools(tools, request.tool_choice)
    params = request.params
    body |= {name: value for name, value in params.items() if name in _THEIRS}
    for name in [name for name in params if name not in _THEIRS]:
        _put(body, model, name, params[name])
    if request.response_schema is not None:
        schema = {"name": "answer", "schema": orjson.dumps(closed(request.response_schema)).decode()}
        put(body, "outputConfig.textFormat", {"type": "json_schema", "structure": {"jsonSchema": schema}})
    return json_bytes(body)


def _put(body: dict[str, Any], model: str, name: str, value: Any) -> None:
    if name == "reasoning_effort" and value not in _EFFORTS:
        raise refusal(f"Bedrock has no reasoning effort {value!r}; use one of {', '.join(_EFFORTS)}")
    if name in _RENAMED:
        put(body, _RENAMED[name], value)
    elif name == "stop":
        put(body, "inferenceConfig.stopSequences", [value] if isinstance(value, str) else value)
    elif name == "top_k" and "anthropic." in model:
        put(body, "additionalModelRequestFields.top_k", value)
    elif name == "reasoning_tokens" and "anthropic." in model:
        thinking = {"type": "enabled", "budget_tokens": value} if value else {"type": "disabled"}
        put(body, "additionalModelRequestFields.thinking", thinking)
    else:
        raise no_parameter(name, _HINT)


def _turns(messages: list[Message]) -> list[dict[str, Any]]:
    """The roles must take turns: what follows in the same role goes into the same turn."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "system":
            raise refusal("Bedrock takes system messages only before all others; move it there")
        role = "assistant" if message.role == "assistant" else "user"
        if not turns or turns[-1]["role"] != role:
            turns.append({"role": role, "content": []})
        turns[-1]["content"] += _blocks(message)
    return turns


def _blocks(message: Message) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        yield {"toolResult": {"toolUseId": id_of(message.tool_call_id, _ID), "content": [{"text": message.content}]}}
        return
    for reasoning in kept_of(message.provider_data, _TAG) or ():
        yield {"reasoningContent": reasoning}
    if message.content:  # an empty text is refused
        yield {"text": message.content}
    for image in message.images:
        media_type, data = image_bytes(image)
        if media_type not in _IMAGES:
            raise refusal(f"Bedrock takes no {media_type!r}; it takes {', '.join(_IMAGES)}")
        yield {"image": {"format": _IMAGES[media_type], "source": {"bytes": data}}}
    for call in message.tool_calls:
        yield {"toolUse": {"toolUseId": id_of(call.id, _ID), "name": call.name, "input": arguments_object(call)}}


def _tools(tools: tuple[Tool, ...], choice: str) -> dict[str, Any]:
    config: dict[str, Any] = {"tools": [{"toolSpec": _tool(tool)} for tool in tools]}
    if choice == "none":
        raise refusal("Bedrock can't be told to call no tool; remove 'tools' of this stage, or its 'tool_choice'")
    if choice:
        config["toolChoice"] = {"auto": {"auto": {}}, "required": {"any": {}}}.get(choice, {"tool": {"name": choice}})
    return config


def _tool(tool: Tool) -> dict[str, Any]:
    described = {"description": tool.description} if tool.description else {}
    parameters = tool.parameters or {"type": "object", "properties": {}}
    return {"name": tool.name, **described, "inputSchema": {"json": parameters}}


def completion_of(body: bytes, model: str, latency_ms: int) -> Completion:
    """Raises AttemptFailed where there is no answer."""
    data = answer_in(body)
    said, content = data.get("stopReason"), part_of(part_of(data, "output"), "message").get("content")
    if not isinstance(said, str) or not said:
        raise malformed("it ended without a stopReason, so it may be cut off")
    if said in _MALFORMED:
        raise malformed(f"it ended with {said}")
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    thoughts = [thought for block in blocks if isinstance(thought := block.get("reasoningContent"), dict)]
    signed = any("redactedContent" in each or part_of(each, "reasoningText").get("signature") for each in thoughts)
    usage = part_of(data, "usage")
    cached, written = count_in(usage, "cacheReadInputTokens"), count_in(usage, "cacheWriteInputTokens")
    fresh = count_in(usage, "inputTokens")
    return completed(
        _billed(data, usage),
        output="".join(text for block in blocks if isinstance(text := block.get("text"), str)),
        model=model,
        finish_reason=_FINISH_REASONS.get(said, "other"),
        tokens_in=None if fresh is None else fresh + (cached or 0) + (written or 0),
        tokens_out=count_in(usage, "outputTokens"),
        tokens_cached_in=cached,
        tokens_cache_write_in=written,
        latency_ms=latency_ms,
        reasoning="".join(str(part_of(each, "reasoningText").get("text") or "") for each in thoughts) or None,
        tool_calls=tuple(_call(block["toolUse"]) for block in blocks if "toolUse" in block),
        provider_data=keeping(_TAG, thoughts) if signed else "",
    )


def _billed(data: Mapping[str, Any], usage: Mapping[str, Any]) -> Billed | None:
    """Tokens that the prompt cache keeps for an hour, and the terms of the call."""
    fast = part_of(data, "performanceConfig").get("latency") == "optimized"
    terms = (("latency", "optimized"),) if fast else tier_terms(part_of(data, "serviceTier").get("type"))
    details = usage.get("cacheDetails")
    lasting = [part for part in details or () if isinstance(part, dict) and part.get("ttl") == "1h"]
    return billed_apart(terms, tokens_cache_write_1h_in=sum(count_in(part, "inputTokens") or 0 for part in lasting))


def _call(tool: Any) -> ToolCall:
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise malformed("it asks for a tool without a name")
    arguments = tool.get("input")
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments or {}).decode()
    return ToolCall(str(tool.get("toolUseId") or ""), tool["name"], text or "{}")
