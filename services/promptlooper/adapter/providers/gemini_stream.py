"""Answers in the Gemini generateContent format that come piece by piece. No I/O."""

from __future__ import annotations

from typing import Any

import orjson

from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers.gemini_answer import used


class Gathered:
    """Puts the parts of an answer together as if it had come at once: each event has the form of a whole answer."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._whole: dict[str, Any] = {}
        self._candidate: dict[str, Any] = {}
        self._parts: list[dict[str, Any]] = []
        self._texts: list[str] = []  # of the last part, while only text is added to it
        self._logprobs: dict[str, list[Any]] = {}
        self.begun = False

    def add(self, event: dict[str, Any]) -> None:
        self._whole |= {name: value for name, value in event.items() if name != "candidates"}
        if isinstance(usage := event.get("usageMetadata"), dict):
            tokens_in, tokens_out = used(usage)
            self._heard.used(tokens_in=tokens_in, tokens_out=tokens_out)
        candidates = event.get("candidates")
        candidate = candidates[0] if isinstance(candidates, list) and candidates else None
        if not isinstance(candidate, dict):
            return
        self._candidate |= {
            name: value for name, value in candidate.items() if name not in ("content", "logprobsResult")
        }
        logprobs = candidate.get("logprobsResult")
        for name, values in logprobs.items() if isinstance(logprobs, dict) else ():
            if isinstance(values, list):
                self._logprobs.setdefault(name, []).extend(values)
        content = candidate.get("content")
        parts = content.get("parts") if isinstance(content, dict) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                self._add(part)

    def _add(self, part: dict[str, Any]) -> None:
        text = part.get("text")
        if not isinstance(text, str):
            self._hear("")
            self._close()
            self._parts.append(part)
            return
        if text:
            self._hear("" if part.get("thought") else text)
        last = self._parts[-1] if self._parts and self._texts else None
        if last is None or last.get("thought") != part.get("thought") or "thoughtSignature" in last:
            self._close()
            self._parts.append(dict(part))
            self._texts = [text]
        else:
            last |= {name: value for name, value in part.items() if name != "text"}
            self._texts.append(text)

    def _hear(self, text: str) -> None:
        self.begun = True
        if text:
            self._heard(text)
        else:
            self._heard.thought()

    def _close(self) -> None:
        if self._texts:
            self._parts[-1]["text"] = "".join(self._texts)
            self._texts = []

    def body(self) -> bytes:
        self._close()
        whole = dict(self._whole)
        if self._candidate or self._parts:
            candidate = {**self._candidate, "content": {"role": "model", "parts": self._parts}}
            if self._logprobs:
                candidate["logprobsResult"] = self._logprobs
            whole["candidates"] = [candidate]
        if "error" in whole:
            whole.pop("candidates", None)
        return orjson.dumps(whole)
