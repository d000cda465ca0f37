"""Experiments: the normal form of what a user submits, and what is known of it while and after it runs.

Every service and client shares these. Money is integer nano-USD, durations are seconds unless a name says `_ms`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from promptlooper.completion import Tool
from promptlooper.errors import InvalidArgument
from promptlooper.jsonvalue import Json, JsonObject


@dataclass(frozen=True, slots=True)
class InputRow:
    input_id: str
    value: Json  # the row without `expected` and `_…`
    expected: Json = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    name: str  # what labels say
    model: str  # provider/model
    params: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MessageTemplate:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Stage:
    messages: tuple[MessageTemplate, ...]  # `system` and `prompt` are written out as messages
    name: str = ""
    model: str = ""  # provider/model; "" is the variant's
    params: JsonObject = field(default_factory=dict)
    timeout: float | None = None  # seconds, of each call; None is limits.stage_timeout
    images: tuple[str, ...] = ()  # templates of addresses or data URIs, or lists of them; with the last user message
    tools: tuple[Tool, ...] = ()
    tool_choice: str = ""  # auto, none, required or a tool's name
    tool_results: Mapping[str, str] = field(default_factory=dict)  # tool → template of its answer
    response_schema: JsonObject | None = None
    retries_on_invalid: int = 0
    continue_conversation: bool = False  # of the stage before, or of the item before
    for_each: str = ""  # template of a list: once per item

    @property
    def takes_one_call(self) -> bool:
        return not (self.for_each or self.tool_results or self.retries_on_invalid)


@dataclass(frozen=True, slots=True)
class Pipeline:
    name: str
    stages: tuple[Stage, ...]
    models: tuple[ModelEntry, ...]  # at least one: where every stage pins its model, the last stage's


@dataclass(frozen=True, slots=True)
class ScorerSpec:
    name: str
    type: str
    value: Json = None  # strings in it are templates
    weight: float = 1.0
    threshold: float | None = None
    output: str = ""  # template of what is scored; "" is the last stage's output
    settings: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gate:
    min_scores: Mapping[str, float] = field(default_factory=dict)  # scorer name → mean that each variant must reach
    max_failed_runs: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    max_concurrency: int = 64
    budget_nanousd: int | None = None
    budget_tokens: int | None = None
    stage_timeout: float = 60.0
    run_timeout: float | None = None  # from a run's start to its end
    experiment_timeout: float | None = None  # from the first start, or from when it was resumed


class CacheMode(Enum):
    OFF = "off"
    READ_WRITE = "read_write"
    READ_ONLY = "read_only"
    WRITE_ONLY = "write_only"
    REFRESH = "refresh"

    @property
    def writes(self) -> bool:
        return self in (CacheMode.READ_WRITE, CacheMode.WRITE_ONLY, CacheMode.REFRESH)


@dataclass(frozen=True, slots=True)
class CachePolicy:
    mode: CacheMode = CacheMode.READ_WRITE
    max_age: float | None = None  # seconds
    namespace: str = "default"


class ExecutionMode(Enum):
    """How questions are asked: each at once, or many by a provider's batches, within hours and mostly at half price."""

    DIRECT = "direct"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class ExecutionPolicy:
    mode: ExecutionMode = ExecutionMode.DIRECT
    timeout: float = 86_400.0  # seconds: what a batch has not answered by then is asked directly

    @property
    def is_batch(self) -> bool:
        return self.mode is ExecutionMode.BATCH


@dataclass(frozen=True, slots=True)
class ExperimentSpec:
    """The normal form. `sweep` has at least one point ({} where nothing is swept), `inputs` at least one row."""

    name: str
    pipelines: tuple[Pipeline, ...]
    inputs: tuple[InputRow, ...]
    description: str = ""
    project: str = "default"
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: JsonObject = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # name → text
    params: JsonObject = field(default_factory=dict)  # None is "not sent"
    sweep: tuple[JsonObject, ...] = ({},)
    repeats: int = 1
    scorers: tuple[ScorerSpec, ...] = ()
    gates: tuple[Gate, ...] = ()
    limits: Limits = Limits()
    cache: CachePolicy = CachePolicy()
    execution: ExecutionPolicy = ExecutionPolicy()


class ExperimentState(Enum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        return self in (ExperimentState.COMPLETED, ExperimentState.CANCELLED, ExperimentState.FAILED)


def experiment_states(states: Iterable[ExperimentState | str]) -> tuple[ExperimentState, ...]:
    """States, also by their names. Raises InvalidArgument."""
    try:
        return tuple(ExperimentState(state) for state in states)
    except ValueError as error:
        names = ", ".join(state.value for state in ExperimentState)
        raise InvalidArgument(f"{error}: use one of {names}", field="states") from error


@dataclass(frozen=True, slots=True)
class RunCounts:
    total: int = 0
    pending: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    cached: int = 0  # runs whose every answer came from the cache
    in_batch: int = 0  # pending ones that wait for a batch


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment with its totals so far."""

    experiment_id: str
    project: str
    name: str
    state: ExperimentState
    counts: RunCounts
    created_at: datetime
    description: str = ""
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    generation: int = 1
    tokens_in: int = 0
    tokens_out: int = 0
    cost_nanousd: int = 0  # of the calls whose price is known
    cost_unknown_calls: int = 0
    cost_saved_nanousd: int = 0
    duration_ms: int = 0  # from the first start to the end, or to now
    started_at: datetime | None = None
    completed_at: datetime | None = None
    event_seq: int = 0
    max_concurrency: int = 0
    budget_nanousd: int | None = None
    budget_tokens: int | None = None
    cost_reserved_nanousd: int = 0  # the most that calls under way may cost; 0 without a budget in money
    cost_remaining_nanousd: int | None = None  # a guess at what is still to come; None where there is no basis
    spec_sha256: str = ""
    cost_uncertain_nanousd: int = 0  # what calls may have cost that were given up; 0 without a budget in money

    @property
    def total_cost_nanousd(self) -> int | None:
        """None where any price is unknown."""
        return None if self.cost_unknown_calls else self.cost_nanousd


@dataclass(frozen=True, slots=True)
class ScorerSummary:
    name: str
    mean: float | None
    n: int
    errors: int


@dataclass(frozen=True, slots=True)
class VariantSummary:
    variant_id: str
    label: str
    pipeline: str
    model: str
    params: JsonObject
    inputs: int
    runs: int  # that ended
    failed: int
    score: float | None
    pass_rate: float | None
    scores: tuple[ScorerSummary, ...]
    latency_ms_p50: int | None
    latency_ms_p95: int | None
    tokens_in: int
    tokens_out: int
    cost_nanousd: int
    cost_unknown_calls: int

    @property
    def total_cost_nanousd(self) -> int | None:
        """None where any price is unknown."""
        return None if self.cost_unknown_calls else self.cost_nanousd


@dataclass(frozen=True, slots=True)
class GateResult:
    name: str  # min_scores.<scorer> or max_failed_runs
    variant_id: str  # "" for the whole experiment
    wanted: float
    got: float | None
    passed: bool


@dataclass(frozen=True, slots=True)
class ExperimentSummary:
    experiment: Experiment
    variants: tuple[VariantSummary, ...]
    gates: tuple[GateResult, ...]

    @property
    def finished(self) -> bool:
        """Whether it ran to its end with no more failed runs than a gate on `max_failed_runs` allows; without one, none
        is."""
        allowed = min((gate.wanted for gate in self.gates if gate.name == "max_failed_runs"), default=0)
        ended_well = self.experiment.state is ExperimentState.COMPLETED
        return ended_well and self.experiment.counts.failed <= allowed

    @property
    def gates_met(self) -> bool:
        return all(gate.passed for gate in self.gates)
