"""Runs, their stages, scores and events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from promptlooper.completion import Message, ToolCall
from promptlooper.jsonvalue import Json, JsonObject


class RunState(Enum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class RunError:
    reason: str  # a name of ErrorReason
    message: str
    stage_index: int | None = None
    stage: str = ""
    attempts: int = 0
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class StageResult:
    stage_index: int
    name: str
    messages: tuple[Message, ...]  # as sent
    output: str
    model: str  # what answered
    model_requested: str
    params: JsonObject  # as sent
    tokens_in: int | None
    tokens_out: int | None
    tokens_reasoning: int | None
    tokens_cached_in: int | None
    latency_ms: int  # of the original call when cached
    ttft_ms: int | None
    cost_nanousd: int | None  # 0 when cached; None where unknown
    cost_saved_nanousd: int | None  # what the cache saved; None where that is unknown
    cached: bool
    attempts: int  # 0 when cached
    finish_reason: str  # "" where there was no answer
    reasoning: str | None = None
    error: RunError | None = None  # why there was no answer, or why it could not be used
    iteration: int = 0  # which item of for_each it was asked for
    round: int = 0  # which call of this item: with results of tools, or again where an answer was invalid
    tool_calls: tuple[ToolCall, ...] = ()
    tokens_cache_write_in: int | None = None  # part of tokens_in
    logprobs: Json = None
    provider_data: str = ""  # what the provider wants back in the next turn
    price_version: str = ""
    batched: bool = False  # the answer came by a batch

    @property
    def conversation(self) -> tuple[Message, ...]:
        """What was sent, and the answer."""
        answer = Message("assistant", self.output, tool_calls=self.tool_calls, provider_data=self.provider_data)
        return (*self.messages, answer)


@dataclass(frozen=True, slots=True)
class Score:
    name: str
    type: str
    value: float | None
    passed: bool | None
    weight: float = 1.0
    explanation: str = ""
    error: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """One cell of the grid. Texts (input, expected, output, stages) are left out in the BASIC view."""

    run_id: str
    experiment_id: str
    project: str
    generation: int
    run_index: int
    state: RunState
    input_index: int
    input_id: str
    variant_id: str
    pipeline: str
    model: str
    params: JsonObject
    repeat: int
    input: Json
    expected: Json
    output: str | None
    score: float | None
    passed: bool | None
    scores: tuple[Score, ...]
    error: RunError | None
    tokens_in: int
    tokens_out: int
    tokens_reasoning: int
    tokens_cached_in: int
    cost_nanousd: int | None
    cost_saved_nanousd: int
    latency_ms: int
    duration_ms: int | None
    cached: bool
    attempts: int
    stages: tuple[StageResult, ...]
    tags: tuple[str, ...]
    metadata: Mapping[str, str]
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Event:
    """A fact with its gapless number. `detail` holds the fields of the proto's ExperimentFact or RunFact by name."""

    experiment_id: str
    event_seq: int
    project: str
    kind: str
    event_time: datetime
    generation: int
    run_index: int | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_id(self) -> str | None:
        return None if self.run_index is None else f"{self.experiment_id}-{self.run_index}"
