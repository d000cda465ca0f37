"""Questions in the Gemini generateContent format. No I/O."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping, Sequence
from typing import Any

from promptlooper.adapter.providers.bodies import check_params, inline_image, stops
from promptlooper.adapter.providers.kept import kept_of
from promptlooper.adapter.providers.refusal import json_bytes, put, refusal
from promptlooper.completion import CompletionRequest, Message, Tool, ToolCall, arguments_of
from promptlooper.jsonvalue import Json, parsed_output

OWNER = "gemini"  # of the provider data that this format takes
_OURS = ("model", "stream", "contents", "systemInstruction", "system_instruction", "tools", "toolConfig", "tool_config")
_RENAMED: Mapping[str, str] = {  # within generationConfig
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "max_tokens": "maxOutputTokens",
    "seed": "seed",
    "stop": "stopSequences",
    "frequency_penalty": "frequencyPenalty",
    "presence_penalty": "presencePenalty",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}
_REASONING = ("reasoning_effort", "reasoning_tokens")
_CHOICES: Mapping[str, str] = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
# Models before 3 have budgets and no levels; these are Google's own for the same words (its OpenAI-compatible address).
_BUDGETS: Mapping[str, int] = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
_LEVELS = ("minimal", "low", "medium", "high")


def request_body(model: str, request: CompletionRequest) -> bytes:
    """Raises AttemptFailed for what the format can't say. Whether it is streamed stands in the path."""
    params = request.params
    check_params(params, ours=_OURS, missing=())
    if params.get("parallel_tool_calls") is False:
        raise refusal(
            "Gemini can't be told to call one tool at a time; remove 'parallel_tool_calls' from 'params', or ask "
            "another provider"
        )
    system, body = [], dict[str, Any]()
    for message in request.messages:
        if message.role != "system":
            break
        system.append({"text": message.content})
    if system:
        body["systemInstruction"] = {"parts": system}
    body["contents"] = _contents(request.messages[len(system) :])
    for name, value in params.items():
        if name in _RENAMED:
            put(body, f"generationConfig.{_RENAMED[name]}", stops(value) if name == "stop" else value)
        elif name == "generationConfig" and isinstance(value, Mapping):
            body[name] = {**value, **body.get(name, {})}
        elif name not in _REASONING and name != "parallel_tool_calls":
            body[name] = value
    if thinking := _thinking(model, params):
        put(body, "generationConfig.thinkingConfig", thinking)
    if request.response_schema is not None:
        put(body, "generationConfig.responseMimeType", "application/json")
        put(body, "generationConfig.responseJsonSchema", request.response_schema)
    if request.tools:
        body["tools"] = [{"functionDeclarations": [_declaration(tool) for tool in request.tools]}]
    if request.tool_choice:
        body["toolConfig"] = {"functionCallingConfig": _calling(request.tool_choice)}
    return json_bytes(body)


def _contents(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Results of tools are the user's, all in the turn that follows their calls."""
    contents: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for message in messages:
        if message.role == "system":
            raise refusal(
                "Gemini takes system messages only before all others; put this one first, or make it a user's"
            )
        names |= {call.id: call.name for call in message.tool_calls}
        role = "model" if message.role == "assistant" else "user"
        parts = _parts(message, names)
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        else:
            contents.append({"role": role, "parts": parts})
    return contents


def _parts(message: Message, names: Mapping[str, str]) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [{"functionResponse": _result(message, names)}]
    if signed := kept_of(message.provider_data, OWNER):
        return list(signed)  # as they came: a signature belongs to its part
    parts = [{"text": message.content}] if message.content or not (message.images or message.tool_calls) else []
    return [*parts, *(_image(image) for image in message.images), *(_call(call) for call in message.tool_calls)]


def _result(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    name = message.name or names.get(message.tool_call_id)
    if not name:
        raise refusal(f"Gemini needs the name of the tool that answers {message.tool_call_id!r}; say it in its message")
    value = parsed_output(message.content)
    response = value if isinstance(value, dict) else {"output": message.content}
    return {**({"id": message.tool_call_id} if message.tool_call_id else {}), "name": name, "response": response}


def _image(image: str) -> dict[str, Any]:
    inline = inline_image(image)
    if inline is not None:
        return {"inlineData": {"mimeType": inline[0], "data": inline[1]}}
    kind = mimetypes.guess_type(image.partition("?")[0])[0]
    return {"fileData": {**({"mimeType": kind} if kind else {}), "fileUri": image}}


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = arguments_of(call)
    if arguments is None:
        raise refusal(
            f"the call of {call.name!r} has arguments that are no JSON object, which Gemini's format can't say"
        )
    return {"functionCall": {**({"id": call.id} if call.id else {}), "name": call.name, "args": arguments}}


def _declaration(tool: Tool) -> dict[str, Any]:
    declared: dict[str, Any] = {"name": tool.name}
    if tool.description:
        declared["description"] = tool.description
    if tool.parameters:
        declared["parametersJsonSchema"] = tool.parameters
    return declared


def _calling(choice: str) -> dict[str, Any]:
    mode = _CHOICES.get(choice)
    return {"mode": mode} if mode else {"mode": "ANY", "allowedFunctionNames": [choice]}


def _thinking(model: str, params: Mapping[str, Json]) -> dict[str, Any] | None:
    effort, budget = params.get("reasoning_effort"), params.get("reasoning_tokens")
    if effort is None and budget is None:
        return None
    if effort is not None and budget is not None:
        raise refusal("Gemini takes 'reasoning_effort' or 'reasoning_tokens'; keep one of them in 'params'")
    if effort is not None and effort not in _BUDGETS:
        raise refusal(f"Gemini has no reasoning_effort {effort!r}; use one of {', '.join(_BUDGETS)}")
    if effort in _LEVELS and not model.removeprefix("models/").startswith(("gemini-2", "gemini-1")):
        return {"thinkingLevel": str(effort).upper(), "includeThoughts": True}
    tokens = budget if effort is None else _BUDGETS[str(effort)]
    return {"thinkingBudget": tokens, **({"includeThoughts": True} if tokens else {})}
