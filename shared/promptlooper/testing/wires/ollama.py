"""Ollama's `/api/chat` and `/api/embed`. The real one ignores what it does not know; this one refuses it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import Field

from promptlooper.testing.wires.embeddings import ollama_answer, ollama_checked
from promptlooper.testing.wires.wire import Asked, Refused, Said, Strict, checked, pieces

_Text = Annotated[str, Field(min_length=1)]


class _Called(Strict):
    name: _Text
    arguments: dict[str, Any]


class _Call(Strict):
    id: str | None = None
    function: _Called


class _Message(Strict):
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    images: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+=*$")]] | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _Function(Strict):
    name: _Text
    description: str | None = None
    parameters: dict[str, Any]


class _Tool(Strict):
    type: Literal["function"]
    function: _Function


class _Options(Strict):
    num_predict: int | None = None
    num_ctx: int | None = None
    num_batch: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: list[str] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None


class _Request(Strict):
    model: _Text
    messages: list[_Message]
    stream: bool = True
    truncate: bool = True
    shift: bool = True
    tools: list[_Tool] | None = None
    format: Literal["json"] | dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    keep_alive: str | int | None = None
    options: _Options | None = None


_EMBEDS = "/api/embed"


class OllamaWire:
    type = "ollama"
    base = ""
    paths = ("/api/chat", "/api/embed")

    def check(self, asked: Asked) -> None:
        if not asked.headers.get("authorization", "Bearer ").startswith("Bearer "):
            raise Refused(401, "unauthorized")
        if asked.path == _EMBEDS:
            ollama_checked(asked)
        else:
            checked(_Request, asked.body)

    def streams(self, asked: Asked) -> bool:
        return asked.path != _EMBEDS and asked.body.get("stream") is not False

    def whole(self, asked: Asked, said: Said) -> bytes:
        if asked.path == _EMBEDS:
            return ollama_answer(asked, said)
        calls = [
            {"id": call.id, "function": {"index": index, "name": call.name, "arguments": orjson.loads(call.arguments)}}
            for index, call in enumerate(said.tool_calls)
        ]
        message: dict[str, Any] = {"role": "assistant", "content": said.text}
        if said.reasoning:
            message["thinking"] = said.reasoning
        if calls:
            message["tool_calls"] = calls
        return orjson.dumps({**_head(asked), "message": message, **_end(said)})

    def stream(self, asked: Asked, said: Said) -> tuple[str, list[bytes]]:
        def line(**message: Any) -> bytes:
            head = {**_head(asked), "message": {"role": "assistant", "content": "", **message}, "done": False}
            return orjson.dumps(head) + b"\n"

        whole = orjson.loads(self.whole(asked, said))
        lines = [line(thinking=piece) for piece in pieces(said.reasoning)]
        lines += [line(content=piece) for piece in pieces(said.text)]
        lines += [line(tool_calls=[call]) for call in whole["message"].get("tool_calls", ())]
        last = {**whole, "message": {"role": "assistant", "content": ""}}
        return "application/x-ndjson", [*lines, orjson.dumps(last) + b"\n"]

    def error(self, status: int, message: str) -> bytes:
        return orjson.dumps({"error": message})


def _head(asked: Asked) -> dict[str, Any]:
    return {"model": asked.body["model"], "created_at": "2026-11-23T12:00:00Z"}


def _end(said: Said) -> dict[str, Any]:
    end: dict[str, Any] = {
        "done": True,
        "done_reason": "length" if said.finish_reason == "length" else "stop",
        "total_duration": 5_000_000,
        "prompt_eval_count": said.tokens_in,
        "prompt_eval_cached_count": said.tokens_cached_in,
        "eval_count": said.tokens_out,
    }
    if said.logprob is not None:
        token = {"token": said.text, "logprob": said.logprob, "bytes": []}
        end["logprobs"] = [{**token, "top_logprobs": [token]}]
    return end
