"""Answers in the OpenAI chat completions format that come piece by piece. No I/O."""

from __future__ import annotations

from typing import Any

import orjson

from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers.openai_format import count_in, reasoning_of, text_of


class Gathered:
    """Puts the parts of an answer together as if it had come at once: `body` is what the other reader takes."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._texts: dict[str, list[str]] = {"content": [], "refusal": [], "reasoning_content": [], "reasoning": []}
        self._calls: list[dict[str, Any]] = []  # of tools
        self._places: dict[Any, dict[str, Any]] = {}  # the last call that had this number in the answer
        self._details: list[dict[str, Any]] = []  # of the reasoning, where OpenRouter signs it
        self._logprobs: list[Any] = []
        self._finish_reason: Any = None
        self._usage: Any = None
        self._model: Any = None
        self._tier: Any = None
        self._error: Any = None
        self.begun = False

    def add(self, event: dict[str, Any]) -> None:
        self._model = event.get("model") or self._model
        self._tier = event.get("service_tier") or self._tier
        if usage := event.get("usage"):
            self._usage = usage
            self._tell_usage(usage)
        self._error = event.get("error") or self._error
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict):
            self._logprobs += logprobs.get("content") or []
        delta = choice.get("delta")
        if isinstance(delta, dict):
            for call in delta.get("tool_calls") or ():
                self._add_call(call)
            for detail in delta.get("reasoning_details") or ():
                self._add_detail(detail)
            if isinstance(delta.get("content"), list):  # Mistral's, where it reasons
                delta = {"content": text_of(delta["content"]), "reasoning_content": reasoning_of(delta)}
            self._add_texts(delta)

    def _add_texts(self, delta: dict[str, Any]) -> None:
        for name, value in delta.items():
            if name not in self._texts or not isinstance(value, str):
                continue
            self._texts[name].append(value)
            if value:
                self.begun = True
                if name == "content":
                    self._heard(value)
                else:
                    self._heard.thought()

    def _add_call(self, part: dict[str, Any]) -> None:
        """The arguments come in parts, the name and the id with the first of them. Some servers give all calls the same
        number, or none."""
        self.begun = True
        self._heard.thought()
        place, function = part.get("index"), part.get("function") or {}
        call = self._places.get(place)
        if call is None or _is_another(call, part):
            call = self._places[place] = {"id": "", "name": "", "arguments": ""}
            self._calls.append(call)
        call["id"] = part.get("id") or call["id"]
        call["name"] = function.get("name") or call["name"]
        arguments = function.get("arguments") or ""
        call["arguments"] += arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()

    def _add_detail(self, part: dict[str, Any]) -> None:
        """Texts come in parts; the last that is said of anything else stays."""
        last = self._details[-1] if self._details else {}
        if (part.get("type"), part.get("index")) != (last.get("type"), last.get("index")):
            self._details.append(dict(part))
            return
        for name, value in part.items():
            if name in ("text", "summary", "data") and isinstance(value, str):
                last[name] = (last.get(name) or "") + value
            elif value is not None:
                last[name] = value

    def _tell_usage(self, usage: object) -> None:
        """Some say it with every event: then it is known when the caller goes."""
        if isinstance(usage, dict):
            self._heard.used(
                tokens_in=count_in(usage, "prompt_tokens"), tokens_out=count_in(usage, "completion_tokens")
            )

    def body(self) -> bytes:
        if self._error is not None:
            return orjson.dumps({"error": self._error})
        message: dict[str, Any] = {name: "".join(texts) for name, texts in self._texts.items() if texts}
        if self._details:
            message["reasoning_details"] = self._details
        calls = [{"id": call.pop("id"), "type": "function", "function": call} for call in self._calls]
        choice = {
            "message": {"content": None, **message, "tool_calls": calls},
            "logprobs": {"content": self._logprobs} if self._logprobs else None,
            "finish_reason": self._finish_reason,
        }
        told = {"model": self._model, "service_tier": self._tier, "usage": self._usage}
        return orjson.dumps({**told, "choices": [choice]})


def _is_another(call: dict[str, Any], part: dict[str, Any]) -> bool:
    """Whether a part with the number of this call begins another one."""
    if (said := part.get("id")) and call["id"]:
        return bool(said != call["id"])
    return part.get("index") is None and bool((part.get("function") or {}).get("name"))
