"""Mistral's chat completions: the OpenAI format with some other words, short ids, and no options of streams."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson

from promptlooper.testing.wires.openai_chat import OpenAIChatWire
from promptlooper.testing.wires.wire import Asked, Refused, Said, sse

_UNKNOWN = ("seed", "stream_options", "max_completion_tokens", "logprobs", "top_logprobs", "top_k", "user", "store")
_ID = re.compile(r"[a-zA-Z0-9]{9}")


class MistralWire(OpenAIChatWire):
    def check(self, asked: Asked) -> None:
        for name in _UNKNOWN:
            if name in asked.body:
                raise Refused(422, f"extra_forbidden: body.{name}")
        super().check(_as_openai(asked))
        for named in _ids(asked.body["messages"]):
            if not _ID.fullmatch(named):
                raise Refused(400, f"Tool call id was {named} but must be a-z, A-Z, 0-9, with a length of 9.")
        if asked.body["messages"][-1]["role"] not in ("user", "tool"):
            raise Refused(400, "Expected last role User or Tool for serving")

    def stream(self, asked: Asked, said: Said) -> tuple[str, list[bytes]]:
        """With the usage in the event that says why it ended, without being asked for it."""
        media_type, events = super().stream(_with_usage(asked), said)
        *before, ending, usage, done = events
        last = {**_data(ending), "usage": _data(usage)["usage"]}
        return media_type, [*before, sse(last), done]

    def error(self, status: int, message: str) -> bytes:
        return orjson.dumps({"object": "error", "message": message, "type": "invalid_request_error", "code": None})


def _data(event: bytes) -> dict[str, Any]:
    data: dict[str, Any] = orjson.loads(event.removeprefix(b"data:"))
    return data


def _as_openai(asked: Asked) -> Asked:
    body = {name: value for name, value in asked.body.items() if name not in ("random_seed", "safe_prompt")}
    return replace(asked, body=body)


def _with_usage(asked: Asked) -> Asked:
    return replace(asked, body={**asked.body, "stream_options": {"include_usage": True}})


def _ids(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        yield from (call["id"] for call in message.get("tool_calls") or ())
        if "tool_call_id" in message:
            yield message["tool_call_id"]
