"""The OpenAI chat completions format: bytes of a question, and what the bytes of an answer mean. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from promptlooper.adapter.providers.billing import billed_apart, completed, tier_terms
from promptlooper.adapter.providers.bodies import answer_in, made_id, malformed
from promptlooper.adapter.providers.kept import keeping, kept_of
from promptlooper.adapter.providers.quirks import Quirks
from promptlooper.adapter.providers.refusal import json_bytes, no_parameter, own_parameter, put, refusal
from promptlooper.adapter.providers.strict_schema import allows_strict
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind
from promptlooper.adapter.tariff import Billed
from promptlooper.completion import (
    FINISH_REASONS,
    TOOL_CHOICES,
    Completion,
    CompletionRequest,
    Message,
    Tool,
    ToolCall,
)
from promptlooper.digest import sha256_hex
from promptlooper.jsonvalue import Json, JsonObject

_OURS = frozenset({"model", "messages", "stream", "stream_options", "tools", "tool_choice", "response_format"})
_UNREADABLE = {
    "n": "one answer is taken; ask again with 'repeats'",
    "best_of": "one answer is taken; ask again with 'repeats'",
    "functions": "use 'tools'",
    "function_call": "use 'tool_choice'",
    "audio": "only text is taken from an answer; remove it from 'params'",
    "modalities": "only text is taken from an answer; remove it from 'params'",
}
"""Parameters whose answers are read by nobody, and what to do."""
_HARMLESS: Mapping[str, tuple[Any, ...]] = {"n": (1,), "best_of": (1,), "modalities": (["text"],)}
_TAG = "openai"  # of what is kept for the next turn: it is not sent to a provider of another format
_MOST_TOKENS = 2**31 - 1  # who says more has not counted; sums and costs of these fit into 64 bits
_FINISH_REASONS: Mapping[str, str] = {
    **{reason: reason for reason in FINISH_REASONS},
    "function_call": "tool_calls",
    "max_tokens": "length",
    "model_length": "length",
    "eos": "stop",
}
_BROKEN_OFF = ("error", "abort", "insufficient_system_resource")  # of OpenRouter, vLLM, DeepSeek
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_SPECIAL = _OURS | frozenset(_UNREADABLE)


def request_body(model: str, request: CompletionRequest, quirks: Quirks, *, stream: bool = False) -> bytes:
    """Raises AttemptFailed for what the endpoint cannot do, what is not the caller's to set, and what is no JSON."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message, quirks) for message in request.messages],
    }
    if request.tools:
        body["tools"] = [{"type": "function", "function": function_of(tool)} for tool in request.tools]
    if request.tool_choice:
        body["tool_choice"] = _choice(request.tool_choice)
    if request.response_schema is not None:
        body["response_format"] = _response_format(request.response_schema, quirks)
    touched, special = quirks.touched, []
    for name, value in request.params.items():
        if name in touched or name in _SPECIAL:
            special.append((name, value))
        else:
            body[name] = value
    for name, value in special:  # last: some go into objects that the others bring
        _put_specially(body, name, value, quirks)
    if stream:
        body["stream"] = True
        if quirks.stream_usage:
            body["stream_options"] = {"include_usage": True}
    return json_bytes(body)


def _put_specially(body: dict[str, Any], name: str, value: Any, quirks: Quirks) -> None:
    if name in _OURS:
        raise own_parameter(name)
    if name in quirks.refused:
        raise no_parameter(name)
    if name in _UNREADABLE and value not in _HARMLESS.get(name, ()):
        raise refusal(f"the parameter {name!r} can't be taken: {_UNREADABLE[name]}")
    put(body, quirks.renamed.get(name, name), value)


def _response_format(schema: JsonObject, quirks: Quirks) -> dict[str, Any]:
    if not quirks.schema:
        raise refusal(
            "this provider takes no JSON Schema of the answer; remove 'response_schema', or ask for JSON in the prompt "
            "and check it with a scorer"
        )
    named: dict[str, Any] = {"name": "answer", "schema": schema}
    if quirks.strict and allows_strict(schema):
        named["strict"] = True
    return {"type": "json_schema", "json_schema": named}


def _message(message: Message, quirks: Quirks) -> dict[str, Any]:
    id_of = _short_id if quirks.short_ids else str
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": id_of(message.tool_call_id), "content": message.content}
    kept = _kept(message, quirks.kept) if quirks.kept and message.provider_data else {}
    if message.tool_calls:
        calls = [
            {"id": id_of(call.id), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
        return {"role": message.role, "content": message.content or None, "tool_calls": calls, **kept}
    if message.images:
        if not quirks.images:
            raise refusal("this model sees no images; ask another one, or remove 'images' of this stage")
        images = [{"type": "image_url", "image_url": {"url": image}} for image in message.images]
        return {"role": message.role, "content": [{"type": "text", "text": message.content}, *images]}
    return {"role": message.role, "content": message.content, **kept}


def _short_id(known: str) -> str:
    """An id that another provider gave, for one that takes only its own form."""
    return known if _SHORT_ID.fullmatch(known) else sha256_hex(known)[:9]


def _kept(message: Message, names: Sequence[str]) -> dict[str, Any]:
    kept = kept_of(message.provider_data, _TAG)
    return {name: kept[name] for name in names if name in kept} if isinstance(kept, dict) else {}


def function_of(tool: Tool) -> dict[str, Any]:
    described = {"description": tool.description} if tool.description else {}
    return {"name": tool.name, **described, "parameters": tool.parameters or {"type": "object", "properties": {}}}


def _choice(name: str) -> Any:
    return name if name in TOOL_CHOICES else {"type": "function", "function": {"name": name}}


def completion_of(body: bytes, model: str, latency_ms: int, kept: Sequence[str] = ()) -> Completion:
    """The answer in a 200 response; `kept` are the fields of its message that are for the next turn. Raises
    AttemptFailed where there is none."""
    data = answer_in(body)
    choices = data.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise malformed("there are no choices")
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        raise malformed("the choice has no message")
    said = choice.get("finish_reason")
    if not isinstance(said, str) or not said:
        raise malformed("it ended without a finish_reason, so it may be cut off")
    if said in _BROKEN_OFF:
        raise AttemptFailed(Failure(Kind.TRANSIENT, f"the answer broke off: {said}", 200))
    output = text_of(message.get("content")) or text_of(message.get("refusal")) or ""
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    calls = tuple(_tool_calls(message.get("tool_calls")))
    # Also where it is empty: DeepSeek refuses the next turn without it.
    back = {name: value for name in kept if (value := message.get(name)) is not None}
    return completed(
        billed_of(part_of(usage, "prompt_tokens_details"), part_of(usage, "completion_tokens_details"), data),
        output=output,
        model=answered if isinstance(answered := data.get("model"), str) and answered else model,
        # Where a tool was demanded by its name, OpenAI says stop.
        finish_reason="tool_calls" if calls and said == "stop" else _FINISH_REASONS.get(said, "other"),
        **counts_of(usage),
        latency_ms=latency_ms,
        reasoning=reasoning_of(message),
        tool_calls=calls,
        logprobs=logprobs_of(choice.get("logprobs")),
        provider_data=keeping(_TAG, back) if back else "",
    )


def billed_of(of_input: Mapping[str, Any], of_output: Mapping[str, Any], data: Mapping[str, Any]) -> Billed | None:
    """Tokens that are not of text, and the tier that the call was served in; None where there is nothing of this."""
    return billed_apart(
        tier_terms(data.get("service_tier")),
        tokens_image_in=count_in(of_input, "image_tokens"),
        tokens_audio_in=count_in(of_input, "audio_tokens"),
        tokens_audio_out=count_in(of_output, "audio_tokens"),
    )


def counts_of(usage: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens, as fields of a Completion."""
    details = part_of(usage, "prompt_tokens_details")
    cached = next(
        (
            count
            for part, name in (
                (details, "cached_tokens"),
                (usage, "prompt_cache_hit_tokens"),  # DeepSeek
                (usage, "cached_tokens"),  # Together, Moonshot
            )
            if (count := count_in(part, name)) is not None
        ),
        None,
    )
    tokens_in, tokens_out = count_in(usage, "prompt_tokens"), count_in(usage, "completion_tokens")
    reasoning = count_in(part_of(usage, "completion_tokens_details"), "reasoning_tokens")
    total = count_in(usage, "total_tokens")
    if reasoning and total and tokens_in is not None and tokens_out is not None:
        # xAI counts reasoning beside the completion's tokens, all others within them.
        tokens_out += reasoning if total == tokens_in + tokens_out + reasoning else 0
    return {
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "tokens_reasoning": reasoning,
        "tokens_cached_in": cached,
        "tokens_cache_write_in": count_in(details, "cache_write_tokens"),
    }


def reasoning_of(message: Mapping[str, Any]) -> str | None:
    """Of the fields in which servers put it; Mistral has parts of the content."""
    text = text_of(message.get("reasoning_content")) or text_of(message.get("reasoning"))
    content = message.get("content")
    if not text and isinstance(content, list):
        text = "".join(text_of(part.get("thinking")) or "" for part in content if isinstance(part, dict))
    return text or None


def _tool_calls(calls: object) -> Iterator[ToolCall]:
    for index, call in enumerate(calls if isinstance(calls, list) else ()):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise malformed("it asks for a tool without a name")
        arguments = function.get("arguments")
        # Some servers send an object where the format has its text.
        text = arguments if isinstance(arguments, str) else orjson.dumps(arguments or {}).decode()
        yield ToolCall(str(call.get("id") or made_id(index)), function["name"], text)


def logprobs_of(said: object) -> Json:
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


def text_of(content: object) -> str | None:
    """Text, or the text parts of a list (as Mistral sends them)."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(text for part in content if isinstance(part, dict) and isinstance(text := part.get("text"), str))
    return None


def part_of(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = usage.get(name)
    return part if isinstance(part, dict) else {}


def count_in(usage: Mapping[str, Any], name: str) -> int | None:
    count = usage.get(name)
    return count if type(count) is int and 0 <= count <= _MOST_TOKENS else None
