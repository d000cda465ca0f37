"""Scores of outputs: what the Runner asks of the Scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from promptlooper.jsonvalue import Json, JsonObject


@dataclass(frozen=True, slots=True)
class ScorerCall:
    type: str  # perhaps with not- before it
    value: Json = None
    settings: JsonObject = field(default_factory=dict)
    output: str | None = None  # scored instead of the item's output


@dataclass(frozen=True, slots=True)
class ScoreItem:
    output: str
    calls: tuple[ScorerCall, ...]
    latency_ms: int = 0
    cost_nanousd: int | None = None
    traceparent: str = ""  # of the run, where that is traced


@dataclass(frozen=True, slots=True)
class ScoreValue:
    value: float | None  # 0..1; None with an error
    explanation: str = ""
    error: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScorerCheck:
    type: str
    value: Json = None
    settings: JsonObject = field(default_factory=dict)
    value_is_template: bool = False  # known only when a run ends


@dataclass(frozen=True, slots=True)
class ScorerInfo:
    type: str
    description: str
    value_schema: JsonObject
    settings_schema: JsonObject
    value_required: bool


class ScoringService(Protocol):
    """The Scorer: its core when embedded, its client when distributed."""

    async def score(self, items: Sequence[ScoreItem]) -> list[list[ScoreValue]]:
        """One value per call of each item. A scorer that fails is an error in its value. Raises ServiceUnavailable."""
        ...

    async def check(self, scorers: Sequence[ScorerCheck]) -> list[list[str]]:
        """What is wrong with each, as sentences with the nearest valid name; empty where nothing is."""
        ...

    async def list_scorers(self) -> list[ScorerInfo]: ...
