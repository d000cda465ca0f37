"""Google's Gemini generateContent and batchEmbedContents as its public address takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from promptlooper.completion import ToolCall
from promptlooper.testing.wires.embeddings import gemini_answer, gemini_checked
from promptlooper.testing.wires.wire import Asked, Refused, Said, Strict, checked, needed, pieces, sse

_Text = Annotated[str, Field(min_length=1)]
_Name = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}$")]
_Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$")]


class _Camel(Strict):
    model_config = ConfigDict(alias_generator=to_camel)


class _Blob(_Camel):
    mime_type: _Text
    data: _Base64


class _File(_Camel):
    mime_type: str | None = None
    file_uri: Annotated[str, Field(pattern=r"^https://")]


class _Call(_Camel):
    id: str | None = None
    name: _Name
    args: dict[str, Any] = {}


class _Response(_Camel):
    id: str | None = None
    name: _Name
    response: dict[str, Any]


class _Part(_Camel):
    text: str | None = None
    inline_data: _Blob | None = None
    file_data: _File | None = None
    function_call: _Call | None = None
    function_response: _Response | None = None
    thought: bool | None = None
    thought_signature: _Base64 | None = None


class _Content(_Camel):
    role: Literal["user", "model"]
    parts: Annotated[list[_Part], Field(min_length=1)]


class _System(_Camel):
    role: str | None = None
    parts: Annotated[list[_Part], Field(min_length=1)]


class _Declaration(_Camel):
    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    parameters_json_schema: dict[str, Any] | None = None


class _Tool(_Camel):
    function_declarations: Annotated[list[_Declaration], Field(min_length=1)]


class _Calling(_Camel):
    mode: Literal["AUTO", "ANY", "NONE", "VALIDATED"]
    allowed_function_names: list[str] | None = None


class _ToolConfig(_Camel):
    function_calling_config: _Calling


class _Thinking(_Camel):
    include_thoughts: bool | None = None
    thinking_budget: Annotated[int, Field(ge=-1)] | None = None
    thinking_level: Literal["MINIMAL", "LOW", "MEDIUM", "HIGH"] | None = None


class _Generation(_Camel):
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: float | None = None
    top_k: int | None = None
    candidate_count: int | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    stop_sequences: Annotated[list[str], Field(max_length=5)] | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    response_logprobs: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_mime_type: Literal["text/plain", "application/json", "text/x.enum"] | None = None
    response_schema: dict[str, Any] | None = None
    response_json_schema: dict[str, Any] | None = None
    thinking_config: _Thinking | None = None


class _Request(_Camel):
    contents: Annotated[list[_Content], Field(min_length=1)]
    system_instruction: _System | None = None
    generation_config: _Generation | None = None
    tools: list[_Tool] | None = None
    tool_config: _ToolConfig | None = None
    safety_settings: list[dict[str, str]] | None = None
    cached_content: str | None = None


_FINISH_REASONS: Mapping[str, str] = {
    "stop": "STOP",
    "length": "MAX_TOKENS",
    "content_filter": "SAFETY",
    "tool_calls": "STOP",
    "other": "OTHER",
}
_STATUSES: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
_EMBEDS = ":batchEmbedContents"


class GeminiWire:
    type = "gemini"
    base = ""
    paths: tuple[str, ...] = tuple(
        f"/v1beta/models/{{model}}:{verb}"
        for verb in ("generateContent", "streamGenerateContent", "batchEmbedContents")
    )

    def check(self, asked: Asked) -> None:
        needed(asked, "x-goog-api-key", 403)
        if "key=" in asked.path:
            raise Refused(400, "the key belongs into its header")
        if asked.path.endswith(_EMBEDS):
            gemini_checked(asked)
            return
        request = checked(_Request, asked.body)
        generation = request.generation_config or _Generation()
        thinking = generation.thinking_config
        if thinking and thinking.thinking_budget is not None and thinking.thinking_level is not None:
            raise Refused(400, "You can only set only one of thinking budget and thinking level.")
        if generation.logprobs is not None and not generation.response_logprobs:
            raise Refused(400, "logprobs is only allowed when responseLogprobs is true")
        if generation.response_json_schema and generation.response_mime_type != "application/json":
            raise Refused(400, "responseJsonSchema needs the responseMimeType application/json")
        _check_contents(request.contents)

    def streams(self, asked: Asked) -> bool:
        return ":streamGenerateContent?" in asked.path and "alt=sse" in asked.path

    def whole(self, asked: Asked, said: Said) -> bytes:
        if asked.path.endswith(_EMBEDS):
            return gemini_answer(asked, said)
        parts = [*_thoughts([said.reasoning], said), *([{"text": said.text}] if said.text else []), *_calls(said)]
        return orjson.dumps(_answer(asked, parts, said, last=True))

    def stream(self, asked: Asked, said: Said) -> tuple[str, list[bytes]]:
        parts = [*_thoughts(pieces(said.reasoning), said), *({"text": piece} for piece in pieces(said.text))]
        answers = [_answer(asked, [part], said) for part in [*parts, *_calls(said)]]
        return "text/event-stream", [sse(answer) for answer in [*answers, _answer(asked, [], said, last=True)]]

    def error(self, status: int, message: str) -> bytes:
        return orjson.dumps({"error": {"code": status, "message": message, "status": _STATUSES.get(status, "UNKNOWN")}})


def _check_contents(contents: list[_Content]) -> None:
    """Every call has its response in the next turn."""
    waiting: list[str] = []
    for content in contents:
        for part in content.parts:
            kinds = (part.text, part.inline_data, part.file_data, part.function_call, part.function_response)
            if sum(kind is not None for kind in kinds) != 1:
                raise Refused(400, "contents.parts: a part must have exactly one kind of data")
        answered = sorted(part.function_response.name for part in content.parts if part.function_response)
        if answered != waiting:
            raise Refused(
                400, "the function response parts must be as many as the function call parts of the turn before"
            )
        waiting = sorted(part.function_call.name for part in content.parts if part.function_call)
    if waiting or contents[-1].role == "model" or contents[0].role == "model":
        raise Refused(400, "a conversation begins and ends with a user's turn")


def _thoughts(texts: list[str], said: Said) -> list[dict[str, Any]]:
    return [{"text": text, "thought": True} for text in texts if text]


def _calls(said: Said) -> list[dict[str, Any]]:
    parts = [{"functionCall": _call(call)} for call in said.tool_calls]
    if parts and said.signature:
        parts[0]["thoughtSignature"] = said.signature
    return parts


def _call(call: ToolCall) -> Any:
    return {"id": call.id, "name": call.name, "args": orjson.loads(call.arguments)}


def _answer(asked: Asked, parts: list[dict[str, Any]], said: Said, *, last: bool = False) -> dict[str, Any]:
    model = asked.path.partition("/models/")[2].partition(":")[0]
    candidate: dict[str, Any] = {"index": 0}
    if parts:
        candidate["content"] = {"role": "model", "parts": parts}
    if last:
        candidate["finishReason"] = _FINISH_REASONS[said.finish_reason]
        if said.logprob is not None:
            token = {"token": said.text, "logProbability": said.logprob}
            candidate["logprobsResult"] = {"chosenCandidates": [token], "topCandidates": [{"candidates": [token]}]}
    return {"candidates": [candidate], "usageMetadata": _usage(said, last=last), "modelVersion": model}


def _usage(said: Said, *, last: bool) -> dict[str, int]:
    """A count of 0 is not sent, and in a stream the answer's own come with its end."""
    counts = {"promptTokenCount": said.tokens_in, "cachedContentTokenCount": said.tokens_cached_in}
    if last:
        counts["candidatesTokenCount"] = said.tokens_out - said.tokens_reasoning
        counts["thoughtsTokenCount"] = said.tokens_reasoning
    return {name: count for name, count in counts.items() if count} | {"totalTokenCount": sum(counts.values())}
