"""What a scorer type is made of, and what it is given to score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from promptlooper.jsonvalue import Json, JsonObject, json_text, json_value
from promptlooper.scoring import ScoreValue

SHOWN = 200
"""Characters of a value that a message repeats."""


class ScoringFailed(Exception):
    """A scorer cannot say what the output is worth; the message tells people why."""


class NotJson(Exception):
    """The output is not JSON; the message says where it stops being it."""


class Subject:
    """One output to score. Its JSON is read when a scorer first asks for it, and once."""

    __slots__ = ("_json", "_not_json", "cost_nanousd", "latency_ms", "text")

    def __init__(self, text: str, latency_ms: int = 0, cost_nanousd: int | None = None) -> None:
        self.text = text
        self.latency_ms = latency_ms
        self.cost_nanousd = cost_nanousd
        self._json: Any = self  # "not read yet": no JSON value is a Subject
        self._not_json: str | None = None

    def json(self) -> Any:
        """Raises NotJson."""
        if self._not_json is None and self._json is self:
            try:
                self._json = json_value(self.text)
            except ValueError as error:
                self._not_json = str(error)
        if self._not_json is not None:
            raise NotJson(self._not_json)
        return self._json


def _no_problems(value: Json, settings: JsonObject) -> list[str]:
    return []


@dataclass(frozen=True, slots=True)
class ScorerType:
    """A registry entry. `value_schema["description"]` is a noun phrase: messages say with it what the value must be.

    `score` gets a value and settings that fit the schemas; `problems` says what a schema cannot, and gets None for a
    value that is a template.
    """

    type: str
    description: str
    score: Callable[[Subject, Any, JsonObject], ScoreValue]
    value_schema: JsonObject
    value_required: bool = True
    settings: Mapping[str, JsonObject] = field(default_factory=dict)  # name → schema
    settings_required: tuple[str, ...] = ()
    problems: Callable[[Any, JsonObject], list[str]] = _no_problems

    @property
    def settings_schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": dict(self.settings),
            "required": list(self.settings_required),
            "additionalProperties": False,
        }


def yes_no(yes: bool, explanation: str) -> ScoreValue:
    return ScoreValue(1.0 if yes else 0.0, explanation)


def as_text(value: Json) -> str:
    """Text as it is, other values as JSON: what a template would print."""
    return value if isinstance(value, str) else json_text(value)


def shown(value: Any) -> str:
    """A value for a message, quoted and cut."""
    text = value if isinstance(value, str) else json_text(value)
    cut = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    return repr(cut) if isinstance(value, str) else cut
