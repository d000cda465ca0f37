"""OpenAI's Responses as its public address takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field

from promptlooper.testing.wires.wire import Asked, Refused, Said, Strict, checked, needed, pieces, sse

_Text = Annotated[str, Field(min_length=1)]


class _InputText(Strict):
    type: Literal["input_text"]
    text: str


class _InputImage(Strict):
    type: Literal["input_image"]
    image_url: Annotated[str, Field(pattern=r"^(https?://|data:image/[a-z+]+;base64,)")]
    detail: Literal["auto", "low", "high"] = "auto"


class _Message(Strict):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[_InputText | _InputImage, Field(discriminator="type")]]


class _Call(Strict):
    type: Literal["function_call"]
    call_id: _Text
    name: _Text
    arguments: str


class _Result(Strict):
    type: Literal["function_call_output"]
    call_id: _Text
    output: str


class _SummaryText(Strict):
    type: Literal["summary_text"]
    text: str


class _Reasoning(Strict):
    type: Literal["reasoning"]
    id: _Text
    summary: list[_SummaryText]
    encrypted_content: _Text  # the rest of it is kept nowhere


class _Tool(Strict):
    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any]
    strict: bool


class _Choice(Strict):
    type: Literal["function"]
    name: _Text


class _Format(Strict):
    type: Literal["json_schema"]
    name: _Text
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool


class _TextOptions(Strict):
    format: _Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class _ReasoningOptions(Strict):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class _Request(Strict):
    model: _Text
    input: Annotated[list[_Message | _Call | _Result | _Reasoning], Field(min_length=1)]
    store: bool = True
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_output_tokens: Annotated[int, Field(ge=16)] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: _ReasoningOptions | None = None
    text: _TextOptions | None = None
    include: list[Literal["reasoning.encrypted_content", "message.output_text.logprobs"]] | None = None
    tools: Annotated[list[_Tool], Field(min_length=1)] | None = None
    tool_choice: Literal["auto", "none", "required"] | _Choice | None = None


class OpenAIResponsesWire:
    type = "openai-responses"
    base = "/v1"
    paths = ("/responses",)

    def check(self, asked: Asked) -> None:
        if not needed(asked, "authorization").startswith("Bearer "):
            raise Refused(401, "the key must be a bearer token")
        request = checked(_Request, asked.body)
        if "reasoning.encrypted_content" in (request.include or ()) and request.model.startswith("gpt-4"):
            raise Refused(400, "Encrypted content is not supported with this model.")
        called: set[str] = set()
        answered: set[str] = set()
        for item in request.input:
            if isinstance(item, _Call):
                called.add(item.call_id)
            elif isinstance(item, _Result):
                if item.call_id not in called:
                    raise Refused(400, f"No tool call found for function call output with call_id {item.call_id}.")
                answered.add(item.call_id)
        if missing := called - answered:
            raise Refused(400, f"No tool output found for function call {', '.join(sorted(missing))}.")

    def streams(self, asked: Asked) -> bool:
        return bool(asked.body.get("stream"))

    def whole(self, asked: Asked, said: Said) -> bytes:
        return orjson.dumps(_response(asked, said))

    def stream(self, asked: Asked, said: Said) -> tuple[str, list[bytes]]:
        whole = _response(asked, said)
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": {**whole, "status": "in_progress", "output": []}}
        ]
        for index, item in enumerate(whole["output"]):
            events += [{**event, "output_index": index} for event in _events(item)]
        events.append({"type": f"response.{whole['status']}", "response": whole})
        numbered = ({**event, "sequence_number": number} for number, event in enumerate(events))
        return "text/event-stream", [sse(event, event["type"]) for event in numbered]

    def error(self, status: int, message: str) -> bytes:
        return orjson.dumps({"error": {"message": message, "type": "error", "param": None, "code": None}})


def _events(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One item of an answer, as it is told piece by piece."""
    of_item = {"item_id": item["id"]}
    begun: dict[str, Any] = {"reasoning": {"summary": []}, "message": {"content": []}}.get(item["type"], {})
    if item["type"] == "function_call":
        begun = {"arguments": ""}
    yield {"type": "response.output_item.added", "item": {**item, "status": "in_progress", **begun}}
    if item["type"] == "reasoning":
        for index, part in enumerate(item["summary"]):
            at = {**of_item, "summary_index": index}
            empty = {**part, "text": ""}
            yield {"type": "response.reasoning_summary_part.added", **at, "part": empty}
            for piece in pieces(part["text"]):
                yield {"type": "response.reasoning_summary_text.delta", **at, "delta": piece}
            yield {"type": "response.reasoning_summary_text.done", **at, "text": part["text"]}
            yield {"type": "response.reasoning_summary_part.done", **at, "part": part}
    elif item["type"] == "message":
        for index, part in enumerate(item["content"]):
            at = {**of_item, "content_index": index}
            yield {"type": "response.content_part.added", **at, "part": {**part, "text": ""}}
            for piece in pieces(part["text"]):
                yield {"type": "response.output_text.delta", **at, "delta": piece, "logprobs": []}
            yield {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []}
            yield {"type": "response.content_part.done", **at, "part": part}
    else:
        arguments = item["arguments"]
        for half in (arguments[:5], arguments[5:]):
            yield {"type": "response.function_call_arguments.delta", **of_item, "delta": half}
        done = {"name": item["name"], "arguments": arguments}
        yield {"type": "response.function_call_arguments.done", **of_item, **done}
    yield {"type": "response.output_item.done", "item": item}


def _response(asked: Asked, said: Said) -> dict[str, Any]:
    why = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(said.finish_reason)
    return {
        "id": "resp_1",
        "object": "response",
        "status": "incomplete" if why else "completed",
        "error": None,
        "incomplete_details": {"reason": why} if why else None,
        "model": asked.body["model"],
        "created_at": 1_700_000_000,
        "parallel_tool_calls": asked.body.get("parallel_tool_calls", True),
        "tool_choice": asked.body.get("tool_choice", "auto"),
        "tools": asked.body.get("tools", []),
        "output": _output(asked, said),
        "usage": {
            "input_tokens": said.tokens_in,
            "input_tokens_details": {
                "cached_tokens": said.tokens_cached_in,
                "cache_write_tokens": said.tokens_cache_write_in,
            },
            "output_tokens": said.tokens_out,
            "output_tokens_details": {"reasoning_tokens": said.tokens_reasoning},
            "total_tokens": said.tokens_in + said.tokens_out,
        },
    }


def _output(asked: Asked, said: Said) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if said.reasoning or said.signature:
        item: dict[str, Any] = {"type": "reasoning", "id": "rs_1", "status": None, "content": None}
        item["summary"] = [{"type": "summary_text", "text": said.reasoning}] if said.reasoning else []
        if "reasoning.encrypted_content" in (asked.body.get("include") or ()):
            item["encrypted_content"] = said.signature
        items.append(item)
    if said.text:
        part: dict[str, Any] = {"type": "output_text", "text": said.text, "annotations": []}
        if said.logprob is not None:
            token = {"token": said.text, "logprob": said.logprob, "bytes": []}
            part["logprobs"] = [{**token, "top_logprobs": [token]}]
        items.append({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]})
    for call in said.tool_calls:
        named = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
        items.append({"type": "function_call", "id": f"fc_{call.id}", "status": "completed", **named})
    return items
