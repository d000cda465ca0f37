"""Answers in the OpenAI chat completions format that come as a stream of server-sent events. No I/O."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson

from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers.openai_format import count_in
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind

MOST_EVENTS = 200_000  # of an answer; one has about as many as tokens
LONGEST_LINE = 1024 * 1024
_STATUS = 200


async def events_of(parts: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream, to its end. Raises AttemptFailed for what is none, and where there
    is no end of them."""
    rest, count = b"", 0
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        if len(rest) > LONGEST_LINE:
            raise AttemptFailed(
                Failure(Kind.PERMANENT, f"a line of the stream is longer than {LONGEST_LINE >> 20} MiB")
            )
        for line in lines:
            if (event := _event(line)) is not None:
                count += 1
                yield event
        if count > MOST_EVENTS:
            raise AttemptFailed(Failure(Kind.PERMANENT, f"the stream has more than {MOST_EVENTS:,} events"))
    if (event := _event(rest)) is not None:
        yield event


def _event(line: bytes) -> dict[str, Any] | None:
    """None for comments, blank lines, other fields and the end's mark."""
    if not line.startswith(b"data:"):
        return None
    data = line[5:].strip()
    if not data or data == b"[DONE]":
        return None
    try:
        event = orjson.loads(data)
    except ValueError:
        raise AttemptFailed(Failure(Kind.MALFORMED, "a part of the stream is not JSON", _STATUS)) from None
    if not isinstance(event, dict):
        raise AttemptFailed(Failure(Kind.MALFORMED, "a part of the stream is not a JSON object", _STATUS))
    return event


class Gathered:
    """Puts the parts of an answer together as if it had come at once: `body` is what the other reader takes."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._texts: dict[str, list[str]] = {"content": [], "refusal": [], "reasoning_content": [], "reasoning": []}
        self._finish_reason: Any = None
        self._usage: Any = None
        self._model: Any = None
        self._error: Any = None
        self.begun = False

    def add(self, event: dict[str, Any]) -> None:
        self._model = event.get("model") or self._model
        if usage := event.get("usage"):
            self._usage = usage
            self._tell_usage(usage)
        self._error = event.get("error") or self._error
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        delta = choice.get("delta")
        for name, value in delta.items() if isinstance(delta, dict) else ():
            if name in self._texts and isinstance(value, str) and value:
                self.begun = True
                self._texts[name].append(value)
                if name == "content":
                    self._heard(value)
                else:
                    self._heard.thought()

    def _tell_usage(self, usage: object) -> None:
        """Some say it with every event: then it is known when the caller goes."""
        if isinstance(usage, dict):
            self._heard.used(
                tokens_in=count_in(usage, "prompt_tokens"), tokens_out=count_in(usage, "completion_tokens")
            )

    def body(self) -> bytes:
        if self._error is not None:
            return orjson.dumps({"error": self._error})
        message = {name: "".join(texts) for name, texts in self._texts.items() if texts}
        choice = {"message": {"content": None, **message}, "finish_reason": self._finish_reason}
        return orjson.dumps({"model": self._model, "choices": [choice], "usage": self._usage})
