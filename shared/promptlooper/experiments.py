"""What clients ask of the Runner: its core when embedded, its client when there is a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from promptlooper.caching import CacheStats
from promptlooper.completion import ModelInfo
from promptlooper.errors import Problem
from promptlooper.experiment import Experiment, ExperimentSpec, ExperimentState, ExperimentSummary
from promptlooper.run import Event, Run, RunState, StageResult
from promptlooper.scoring import ScorerInfo
from promptlooper.sources import ExperimentSource, FilePiece, RenderedRun, RunTarget, Uploaded


@dataclass(frozen=True, slots=True)
class Validation:
    problems: tuple[Problem, ...]
    runs: int
    calls: int
    estimated_cost_nanousd: int | None  # None where a price or max_tokens is unknown
    price_versions: tuple[str, ...] = ()  # the price lists of the estimate
    calls_at_least: bool = False  # answers decide on some of the calls: there may be more


@dataclass(frozen=True, slots=True)
class ExperimentFilter:
    project: str = ""  # "" is every project
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    states: tuple[ExperimentState, ...] = ()
    experiment_id_prefix: str = ""


@dataclass(frozen=True, slots=True)
class ExperimentPage:
    experiments: tuple[Experiment, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class RunPage:
    runs: tuple[Run, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class EventPage:
    events: tuple[Event, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class ExperimentUpdate:
    """What is to change of an experiment; None stays as it is."""

    max_concurrency: int | None = None
    budget_nanousd: int | None = None
    budget_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class WatchMessage:
    """Exactly one of the four is set. `resume_token` goes on after this message."""

    resume_token: str
    event_seq: int
    snapshot: Experiment | None = None
    event: Event | None = None
    bookmark: Experiment | None = None
    terminal: Experiment | None = None

    @property
    def experiment(self) -> Experiment | None:
        """How the experiment stands; None where the message is an event."""
        return self.snapshot or self.bookmark or self.terminal


@dataclass(frozen=True, slots=True)
class StartedRun:
    """A run that was queued, and the experiment that was made for it."""

    run_id: str
    experiment: Experiment


@dataclass(frozen=True, slots=True)
class RunWatchMessage:
    """One of the four is set. `resume_token` goes on after this message."""

    resume_token: str
    event_seq: int  # of the experiment
    snapshot: Run | None = None  # without texts
    event: Event | None = None
    bookmark: bool = False
    terminal: Run | None = None  # in full


@dataclass(frozen=True, slots=True)
class OutputDelta:
    """A piece of a stage's output; it follows the pieces before."""

    stage_index: int
    stage: str
    text: str


@dataclass(frozen=True, slots=True)
class Execution:
    """One of the three is set; `run` is the last, without an id."""

    delta: OutputDelta | None = None
    stage: StageResult | None = None
    run: Run | None = None


class Experiments(Protocol):
    """The Runner as clients see it. The errors are those of the RPCs of the same names."""

    async def create(self, experiment: ExperimentSpec | ExperimentSource, request_id: str = "") -> Experiment:
        """Raises FilesMissing where a source lacks files: upload them, and ask again with the same request_id."""
        ...

    async def validate(self, experiment: ExperimentSpec | ExperimentSource) -> Validation: ...

    async def upload(self, piece: FilePiece) -> Uploaded:
        """Keeps a piece of a file for sources that refer to it."""
        ...

    async def render(self, experiment: ExperimentSpec | ExperimentSource | str, run_index: int = 0) -> RenderedRun:
        """What a run would send, also of a stored experiment."""
        ...

    async def start_run(self, target: RunTarget, request_id: str = "") -> StartedRun:
        """Queues one run, as an experiment of its own."""
        ...

    def watch_run(
        self, run_id: str, resume_token: str = "", bookmark_interval: float | None = None
    ) -> AsyncIterator[RunWatchMessage]:
        """Snapshot, events of the run, terminal. Ends without a terminal where the server drains, as `watch` does."""
        ...

    def execute_run(self, target: RunTarget, timeout: float | None = None) -> AsyncIterator[Execution]:
        """One run now, for this caller, not stored; leaving the iterator stops its calls. `timeout` in seconds."""
        ...

    async def get(self, experiment_id: str) -> Experiment: ...

    async def list_experiments(
        self, where: ExperimentFilter, page_size: int = 0, page_token: str = ""
    ) -> ExperimentPage: ...

    async def cancel(self, experiment_id: str) -> Experiment: ...

    async def pause(self, experiment_id: str) -> Experiment: ...

    async def resume(self, experiment_id: str, request_id: str = "") -> Experiment:
        """Goes on with what was paused, cancelled, failed or, embedded, interrupted."""
        ...

    async def retry(self, experiment_id: str, request_id: str = "") -> Experiment:
        """Runs the failed runs again."""
        ...

    async def update(self, experiment_id: str, update: ExperimentUpdate) -> Experiment: ...

    async def delete(self, experiment_id: str) -> None: ...

    def watch(
        self,
        experiment_id: str,
        resume_token: str = "",
        kinds: Sequence[str] = (),
        bookmark_interval: float | None = None,
    ) -> AsyncIterator[WatchMessage]:
        """Snapshot, events, terminal. Ends without a terminal where the server drains: go on with the last token."""
        ...

    async def list_events(
        self,
        experiment_id: str,
        after_event_seq: int = 0,
        page_size: int = 0,
        page_token: str = "",
        kinds: Sequence[str] = (),
    ) -> EventPage: ...

    async def get_run(self, run_id: str) -> Run: ...

    async def list_runs(
        self,
        experiment_id: str,
        page_size: int = 0,
        page_token: str = "",
        states: Sequence[RunState] = (),
        full: bool = False,
    ) -> RunPage: ...

    async def cancel_run(self, run_id: str) -> Run: ...

    def export(self, experiment_id: str, start_run_index: int = 0) -> AsyncIterator[Run]:
        """Every run that has started, in full, by run_index."""
        ...

    async def summarize(self, experiment_id: str) -> ExperimentSummary: ...

    async def list_models(self) -> list[ModelInfo]: ...

    async def list_scorers(self) -> list[ScorerInfo]: ...

    async def cache_stats(self) -> CacheStats: ...

    async def purge_cache(self, scope: str, model: str = "") -> int: ...
