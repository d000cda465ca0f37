"""Answers in the Anthropic Messages format that come piece by piece. No I/O."""

from __future__ import annotations

from typing import Any

import orjson

from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers.anthropic_answer import tokens_in
from promptlooper.adapter.providers.bodies import malformed
from promptlooper.adapter.providers.openai_format import count_in
from promptlooper.jsonvalue import json_value

_PARTS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


class Gathered:
    """Puts the parts of an answer together as if it had come at once."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._message: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}  # by their number in the answer
        self._parts: dict[int, dict[str, list[str]]] = {}  # texts of a block, and the JSON of a tool's input
        self._error: Any = None
        self.begun = False

    def add(self, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "message_start" if isinstance(message := event.get("message"), dict):
                self._message = message
                self._use(message.get("usage"))
            case "content_block_start" if isinstance(block := event.get("content_block"), dict):
                self._blocks[_index(event)], self._parts[_index(event)] = block, {}
                if block.get("type") == "tool_use":
                    self._hear("input", "")
                elif text := block.get("text"):
                    self._hear("text", text)
            case "content_block_delta" if isinstance(delta := event.get("delta"), dict):
                self._add(_index(event), delta)
            case "message_delta":
                self._message |= event.get("delta") or {}
                self._use(event.get("usage"))
            case "error":
                self._error = event.get("error") or {}

    def _add(self, index: int, delta: dict[str, Any]) -> None:
        kind = delta.get("type")
        name = "input" if kind == "input_json_delta" else _PARTS.get(str(kind))
        text = delta.get("partial_json" if name == "input" else str(name))
        if name is None or not isinstance(text, str):
            return
        if index not in self._parts:
            raise malformed("a part of the stream is of no block that has begun")
        self._parts[index].setdefault(name, []).append(text)
        if text:
            self._hear(name, text)

    def _hear(self, name: str, text: str) -> None:
        self.begun = True
        if name == "text":
            self._heard(text)
        else:
            self._heard.thought()

    def _use(self, usage: object) -> None:
        """Counts are cumulative; the last ones hold."""
        if isinstance(usage, dict):
            self._usage |= {name: value for name, value in usage.items() if value is not None}
            self._heard.used(tokens_in=tokens_in(self._usage), tokens_out=count_in(self._usage, "output_tokens"))

    def body(self) -> bytes:
        if self._error is not None:
            return orjson.dumps({"error": self._error})
        blocks = [_whole(self._blocks[index], self._parts[index]) for index in sorted(self._blocks)]
        return orjson.dumps({**self._message, "content": blocks, "usage": self._usage})


def _index(event: dict[str, Any]) -> int:
    index = event.get("index")
    if not isinstance(index, int):
        raise malformed("a part of the stream does not say of which block it is")
    return index


def _whole(block: dict[str, Any], parts: dict[str, list[str]]) -> dict[str, Any]:
    whole = {
        **block,
        **{name: (block.get(name) or "") + "".join(texts) for name, texts in parts.items() if name != "input"},
    }
    if written := "".join(parts.get("input", ())):
        try:
            whole["input"] = json_value(written)
        except ValueError:
            whole["input"] = written
    return whole
