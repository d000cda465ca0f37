"""Questions in the Anthropic Messages format. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from promptlooper.adapter.providers.bodies import check_params, id_of, inline_image, stops, tools_of
from promptlooper.adapter.providers.closed_schema import closed
from promptlooper.adapter.providers.kept import kept_of
from promptlooper.adapter.providers.refusal import json_bytes, refusal
from promptlooper.completion import CompletionRequest, Message, Tool, arguments_of
from promptlooper.jsonvalue import Json

MAX_TOKENS = 8192  # where the caller says none, as the format needs one: what every model of today can write
OWNER = "anthropic"  # of the provider data that this format takes
_FORMAT = "the Anthropic format"
_OURS = ("model", "messages", "system", "stream", "tools", "tool_choice")
_MISSING = ("seed", "frequency_penalty", "presence_penalty", "logprobs", "top_logprobs")
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_ID = re.compile(r"[a-zA-Z0-9_-]+")
_CHOICES: Mapping[str, str] = {"auto": "auto", "none": "none", "required": "any"}
_CONSUMED = frozenset(
    {*_MISSING, "max_tokens", "stop", "reasoning_effort", "reasoning_tokens", "parallel_tool_calls", "output_config"}
)


def request_body(model: str, request: CompletionRequest, *, stream: bool = False) -> bytes:
    """Raises AttemptFailed for what the format can't say."""
    params = request.params
    check_params(params, ours=_OURS, missing=_MISSING)
    system = _leading_system(request.messages)
    body: dict[str, Any] = {"model": model, "max_tokens": params.get("max_tokens", MAX_TOKENS)}
    if system:
        body["system"] = "\n\n".join(message.content for message in system)
    body["messages"] = _turns(request.messages[len(system) :])
    body |= {name: value for name, value in params.items() if name not in _CONSUMED}
    if "stop" in params:
        body["stop_sequences"] = stops(params["stop"])
    _set_reasoning(body, params)
    if tools := tools_of(request):
        body["tools"] = [_tool(tool) for tool in tools]
    wanted = request.tool_choice if request.tools or not tools else "none"
    if choice := _choice(wanted, params.get("parallel_tool_calls")):
        body["tool_choice"] = choice
    if output := _output_config(request.response_schema, params):
        body["output_config"] = output
    if stream:
        body["stream"] = True
    return json_bytes(body)


def _leading_system(messages: Sequence[Message]) -> Sequence[Message]:
    turns = (index for index, message in enumerate(messages) if message.role != "system")
    return messages[: next(turns, len(messages))]


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Results of tools are the user's, all in the turn that follows their calls."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = "user" if message.role == "tool" else message.role
        blocks = _blocks(message)
        last = turns[-1] if turns else None
        if last is not None and role == "user" == last["role"]:
            last["content"] = [*_listed(last["content"]), *_listed(blocks)]
        else:
            turns.append({"role": role, "content": blocks})
    return turns


def _listed(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _blocks(message: Message) -> str | list[dict[str, Any]]:
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": id_of(message.tool_call_id, _ID), "content": message.content}]
    if signed := kept_of(message.provider_data, OWNER):
        return list(signed)  # as they came: another order of signed blocks is refused
    blocks = [*_images(message), *(_calls(message))]
    if not blocks:
        return message.content
    # An empty text is refused.
    return [*([{"type": "text", "text": message.content}] if message.content else []), *blocks]


def _images(message: Message) -> list[dict[str, Any]]:
    blocks = []
    for image in message.images:
        inline = inline_image(image)
        if inline is None:
            source = {"type": "url", "url": image}
        else:
            source = {"type": "base64", "media_type": inline[0], "data": inline[1]}
        blocks.append({"type": "image", "source": source})
    return blocks


def _calls(message: Message) -> list[dict[str, Any]]:
    blocks = []
    for call in message.tool_calls:
        arguments = arguments_of(call)
        if arguments is None:
            raise refusal(f"the call of {call.name!r} has arguments that are no JSON object, which {_FORMAT} can't say")
        blocks.append({"type": "tool_use", "id": id_of(call.id, _ID), "name": call.name, "input": arguments})
    return blocks


def _tool(tool: Tool) -> dict[str, Any]:
    described = {"description": tool.description} if tool.description else {}
    return {"name": tool.name, **described, "input_schema": tool.parameters or {"type": "object"}}


def _choice(name: str, parallel: Json) -> dict[str, Any] | None:
    if not name and parallel is None:
        return None
    kind = _CHOICES.get(name or "auto")
    choice: dict[str, Any] = {"type": kind} if kind else {"type": "tool", "name": name}
    if parallel is not None and kind != "none":
        choice["disable_parallel_tool_use"] = not parallel
    return choice


def _set_reasoning(body: dict[str, Any], params: Mapping[str, Json]) -> None:
    """A budget is the old models' way, which the caller may also write as `thinking`; an effort the new models'."""
    effort, budget = params.get("reasoning_effort"), params.get("reasoning_tokens")
    if budget is not None:
        thinking: dict[str, Any] = {"type": "enabled", "budget_tokens": budget} if budget else {"type": "disabled"}
        if isinstance(budget, int) and "max_tokens" not in params:
            body["max_tokens"] += budget  # it counts what is thought too
    elif effort is not None:
        thinking = {"type": "disabled" if effort == "none" else "adaptive"}
    else:
        return
    if "thinking" in params:
        raise refusal("'thinking' and a reasoning parameter say the same; keep one of them in 'params'")
    body["thinking"] = thinking


def _output_config(schema: Mapping[str, Json] | None, params: Mapping[str, Json]) -> dict[str, Any]:
    said = params.get("output_config")
    config: dict[str, Any] = dict(said) if isinstance(said, Mapping) else {}
    effort = params.get("reasoning_effort")
    if effort not in (None, "none"):
        if effort not in _EFFORTS:
            raise refusal(f"{_FORMAT} has no reasoning_effort {effort!r}; use one of none, {', '.join(_EFFORTS)}")
        config["effort"] = effort
    if schema is not None:
        config["format"] = {"type": "json_schema", "schema": closed(schema)}
    return config
