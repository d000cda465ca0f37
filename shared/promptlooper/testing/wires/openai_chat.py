"""OpenAI's chat completions and embeddings as its public address takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field

from promptlooper.testing.wires.embeddings import openai_answer, openai_checked
from promptlooper.testing.wires.wire import Asked, Refused, Said, Strict, checked, needed, pieces, sse

_Text = Annotated[str, Field(min_length=1)]


class _TextPart(Strict):
    type: Literal["text"]
    text: str


class _Url(Strict):
    url: Annotated[str, Field(pattern=r"^(https?://|data:image/[a-z+]+;base64,)")]
    detail: Literal["auto", "low", "high"] = "auto"


class _ImagePart(Strict):
    type: Literal["image_url"]
    image_url: _Url


class _System(Strict):
    role: Literal["system", "developer"]
    content: str | list[_TextPart]


class _User(Strict):
    role: Literal["user"]
    content: str | list[Annotated[_TextPart | _ImagePart, Field(discriminator="type")]]


class _Called(Strict):
    name: _Text
    arguments: str


class _Call(Strict):
    id: _Text
    type: Literal["function"]
    function: _Called


class _Assistant(Strict):
    role: Literal["assistant"]
    content: str | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[_Call], Field(min_length=1)] | None = None


class _Result(Strict):
    role: Literal["tool"]
    tool_call_id: _Text
    content: str | list[_TextPart]


class _Function(Strict):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(Strict):
    type: Literal["function"]
    function: _Function


class _Name(Strict):
    name: str


class _Choice(Strict):
    type: Literal["function"]
    function: _Name


class _Schema(Strict):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class _Format(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


class _StreamOptions(Strict):
    include_usage: bool


class _Request(Strict):
    model: _Text
    messages: Annotated[
        list[Annotated[_System | _User | _Assistant | _Result, Field(discriminator="role")]], Field(min_length=1)
    ]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    parallel_tool_calls: bool | None = None
    tools: Annotated[list[_Tool], Field(min_length=1)] | None = None
    tool_choice: Literal["auto", "none", "required"] | _Choice | None = None
    response_format: _Format | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    store: bool | None = None


class OpenAIChatWire:
    type = "openai"
    base = "/v1"
    paths: tuple[str, ...] = ("/chat/completions", "/embeddings")

    def check(self, asked: Asked) -> None:
        if not needed(asked, "authorization").startswith("Bearer "):
            raise Refused(401, "the key must be a bearer token")
        if _embeds(asked):
            openai_checked(asked)
            return
        request = checked(_Request, asked.body)
        if request.stream_options and not request.stream:
            raise Refused(400, "'stream_options' is only allowed with 'stream'")
        if request.top_logprobs is not None and not request.logprobs:
            raise Refused(400, "'top_logprobs' needs 'logprobs'")
        if (request.tool_choice or request.parallel_tool_calls is not None) and not request.tools:
            raise Refused(400, "'tool_choice' and 'parallel_tool_calls' are only allowed with 'tools'")
        waiting: set[str] = set()
        for message in request.messages:
            if isinstance(message, _Result):
                if message.tool_call_id not in waiting:
                    raise Refused(400, "a tool's message must follow the call that it answers")
                waiting.remove(message.tool_call_id)
            elif waiting:
                raise Refused(400, f"these calls have no answer: {', '.join(sorted(waiting))}")
            elif isinstance(message, _Assistant):
                waiting = {call.id for call in message.tool_calls or ()}

    def streams(self, asked: Asked) -> bool:
        return bool(asked.body.get("stream"))

    def whole(self, asked: Asked, said: Said) -> bytes:
        if _embeds(asked):
            return openai_answer(asked, said)
        message: dict[str, Any] = {"role": "assistant", "content": said.text or None, "refusal": None}
        if said.tool_calls:
            message["tool_calls"] = [_call(call) for call in said.tool_calls]
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        choice = {
            "index": 0,
            "message": message,
            "logprobs": _logprobs(said),
            "finish_reason": _reason(said),
        }
        return orjson.dumps({**_head(asked, "chat.completion"), "choices": [choice], "usage": _usage(said)})

    def stream(self, asked: Asked, said: Said) -> tuple[str, list[bytes]]:
        head = _head(asked, "chat.completion.chunk")

        def event(delta: Mapping[str, Any], finish_reason: str | None = None, logprobs: Any = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
            return sse({**head, "choices": [choice]})

        events = [event({"role": "assistant", "content": "", "refusal": None})]
        events += [event({"reasoning_content": piece}) for piece in pieces(said.reasoning)]
        events += [event({"content": piece}) for piece in pieces(said.text)]
        for index, call in enumerate(said.tool_calls):
            name = {"name": call.name, "arguments": ""}
            events.append(
                event({"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": name}]})
            )
            for half in (call.arguments[:5], call.arguments[5:]):
                events.append(event({"tool_calls": [{"index": index, "function": {"arguments": half}}]}))
        if logprobs := _logprobs(said):
            events.append(event({}, logprobs=logprobs))
        events.append(event({}, _reason(said)))
        if (asked.body.get("stream_options") or {}).get("include_usage"):
            events.append(sse({**head, "choices": [], "usage": _usage(said)}))
        return "text/event-stream", [*events, sse(b"[DONE]")]

    def error(self, status: int, message: str) -> bytes:
        return orjson.dumps({"error": {"message": message, "type": "error", "param": None, "code": None}})


def _embeds(asked: Asked) -> bool:
    return asked.path.partition("?")[0].endswith("/embeddings")


def _head(asked: Asked, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1_700_000_000, "model": asked.body["model"]}


def _call(call: Any) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _reason(said: Said) -> str:
    return "tool_calls" if said.tool_calls else said.finish_reason


def _usage(said: Said) -> dict[str, Any]:
    return {
        "prompt_tokens": said.tokens_in,
        "completion_tokens": said.tokens_out,
        "total_tokens": said.tokens_in + said.tokens_out,
        "prompt_tokens_details": {"cached_tokens": said.tokens_cached_in},
        "completion_tokens_details": {"reasoning_tokens": said.tokens_reasoning},
    }


def _logprobs(said: Said) -> dict[str, Any] | None:
    if said.logprob is None:
        return None
    token = {"token": said.text, "logprob": said.logprob, "bytes": None}
    return {"content": [{**token, "top_logprobs": [token]}], "refusal": None}
