"""Commands are run against a Runner made of dataclasses in memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result

from promptlooper.caching import CacheStats
from promptlooper.cli.main import main
from promptlooper.cli.session import Target
from promptlooper.completion import Message, ModelInfo, Price
from promptlooper.errors import (
    DomainError,
    ExperimentNotEnded,
    ExperimentNotFound,
    Problem,
    ResumeTokenExpired,
    RunNotFound,
)
from promptlooper.experiment import (
    Experiment,
    ExperimentSpec,
    ExperimentState,
    ExperimentSummary,
    GateResult,
    RunCounts,
    ScorerSummary,
    VariantSummary,
)
from promptlooper.experiments import (
    EventPage,
    ExperimentFilter,
    ExperimentPage,
    ExperimentUpdate,
    RunPage,
    Validation,
    WatchMessage,
)
from promptlooper.run import Event, Run, RunError, RunState, Score, StageResult
from promptlooper.scoring import ScorerInfo

EPOCH = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def make_run(index: int = 0, experiment_id: str = "abc123", **changes: Any) -> Run:
    stage = StageResult(
        stage_index=0,
        name="",
        messages=(Message("system", "Be brief."), Message("user", "Capital of France?")),
        output="Paris",
        model="smollm2",
        model_requested="local/smollm2-135m-instruct",
        params={"temperature": 0},
        tokens_in=12,
        tokens_out=3,
        tokens_reasoning=None,
        tokens_cached_in=None,
        latency_ms=80,
        ttft_ms=None,
        cost_nanousd=1500,
        cost_saved_nanousd=0,
        cached=False,
        attempts=1,
        finish_reason="stop",
    )
    run = Run(
        run_id=f"{experiment_id}-{index}",
        experiment_id=experiment_id,
        project="default",
        generation=1,
        run_index=index,
        state=RunState.COMPLETED,
        input_index=index,
        input_id=f"in{index}",
        variant_id="0123456789ab",
        pipeline="direct",
        model="local/smollm2-135m-instruct",
        params={"temperature": 0},
        repeat=0,
        input={"country": "France"},
        expected="Paris",
        output="Paris",
        score=1.0,
        passed=True,
        scores=(Score("icontains", "icontains", 1.0, True),),
        error=None,
        tokens_in=12,
        tokens_out=3,
        tokens_reasoning=0,
        tokens_cached_in=0,
        cost_nanousd=1500,
        cost_saved_nanousd=0,
        latency_ms=80,
        duration_ms=90,
        cached=False,
        attempts=1,
        stages=(stage,),
        tags=("demo",),
        metadata={"owner": "search"},
        created_at=EPOCH,
        started_at=EPOCH,
        completed_at=EPOCH + timedelta(milliseconds=90),
    )
    return replace(run, **changes)


def make_failed_run(index: int, experiment_id: str = "abc123") -> Run:
    error = RunError("PROVIDER_UNAVAILABLE", "the provider is down", 0, "", 3, True)
    return make_run(
        index,
        experiment_id,
        state=RunState.FAILED,
        error=error,
        output=None,
        score=None,
        passed=None,
        scores=(),
        stages=(),
        cost_nanousd=None,
    )


def make_experiment(experiment_id: str = "abc123", **changes: Any) -> Experiment:
    experiment = Experiment(
        experiment_id=experiment_id,
        project="default",
        name="capitals",
        state=ExperimentState.COMPLETED,
        counts=RunCounts(total=2, completed=2),
        created_at=EPOCH,
        tokens_in=24,
        tokens_out=6,
        cost_nanousd=3000,
        duration_ms=1200,
        started_at=EPOCH,
        completed_at=EPOCH + timedelta(seconds=1),
        event_seq=9,
    )
    return replace(experiment, **changes)


def make_summary(experiment: Experiment, gates: Sequence[GateResult] = ()) -> ExperimentSummary:
    variant = VariantSummary(
        variant_id="0123456789ab",
        label="direct · local/smollm2-135m-instruct",
        pipeline="direct",
        model="local/smollm2-135m-instruct",
        params={"temperature": 0},
        inputs=2,
        runs=2,
        failed=experiment.counts.failed,
        score=0.75,
        pass_rate=0.5,
        scores=(ScorerSummary("icontains", 0.75, 2, 0),),
        latency_ms_p50=80,
        latency_ms_p95=1500,
        tokens_in=24,
        tokens_out=6,
        cost_nanousd=experiment.cost_nanousd,
        cost_unknown_calls=experiment.cost_unknown_calls,
    )
    return ExperimentSummary(experiment, (variant,), tuple(gates))


@dataclass
class FakeRunner:
    """An `Experiments` that holds what a test put into it, newest first, and remembers what it was asked."""

    experiments: list[Experiment] = field(default_factory=list)
    runs: dict[str, list[Run]] = field(default_factory=dict)
    gates: tuple[GateResult, ...] = ()
    problems: tuple[Problem, ...] = ()
    ends_as: ExperimentState = ExperimentState.COMPLETED
    failed_runs: int = 0
    cached_runs: int = 0
    hold: asyncio.Event | None = None  # set: a watch waits for it before it ends
    watch_errors: list[DomainError] = field(default_factory=list)  # raised by watches, first to last
    unreachable: DomainError | None = None
    created: list[tuple[ExperimentSpec, str]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    paused: list[str] = field(default_factory=list)
    resumed: list[tuple[str, str]] = field(default_factory=list)  # with their request ids
    retried: list[tuple[str, str]] = field(default_factory=list)
    updated: list[ExperimentUpdate] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    first_event_seq: int = 1  # those before it are no longer kept
    event_pages: list[tuple[int, int]] = field(default_factory=list)  # asked for: after_event_seq and page_size
    deleted: list[str] = field(default_factory=list)
    purged: list[tuple[str, str]] = field(default_factory=list)
    cached: CacheStats = field(default_factory=lambda: CacheStats("file", 3, 2_000_000, 0, 0))
    targets: list[Target] = field(default_factory=list)
    watches: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)
    on_watch: Callable[[], None] = lambda: None
    listener: Any = None  # of the connection, as the last command gave it

    @asynccontextmanager
    async def opened(self, target: Target, listener: Any = None) -> AsyncIterator[FakeRunner]:
        self.targets.append(target)
        self.listener = listener
        yield self

    def _reach(self) -> None:
        if self.unreachable is not None:
            raise self.unreachable

    def _find(self, experiment_id: str) -> Experiment:
        self._reach()
        for experiment in self.experiments:
            if experiment.experiment_id == experiment_id:
                return experiment
        raise ExperimentNotFound(f"no experiment {experiment_id!r}")

    async def create(self, spec: ExperimentSpec, request_id: str = "") -> Experiment:
        from promptlooper.errors import InvalidExperiment

        self._reach()
        if self.problems:
            raise InvalidExperiment(self.problems)
        self.created.append((spec, request_id))
        total = len(spec.inputs) * len(spec.pipelines)
        experiment = make_experiment(
            f"new{len(self.created)}",
            name=spec.name,
            project=spec.project,
            state=ExperimentState.PENDING,
            counts=RunCounts(total=total, pending=total),
        )
        self.experiments.insert(0, experiment)
        self.runs.setdefault(experiment.experiment_id, [make_run(i, experiment.experiment_id) for i in range(total)])
        return experiment

    async def validate(self, spec: ExperimentSpec) -> Validation:
        self._reach()
        calls = len(spec.inputs) * sum(len(p.stages) for p in spec.pipelines)
        return Validation(self.problems, len(spec.inputs) * len(spec.pipelines), calls, 12_000_000, ("list 7",))

    async def get(self, experiment_id: str) -> Experiment:
        return self._find(experiment_id)

    async def list_experiments(
        self, where: ExperimentFilter, page_size: int = 0, page_token: str = ""
    ) -> ExperimentPage:
        self._reach()
        found = [
            e
            for e in self.experiments
            if where.project in ("", e.project)
            and e.experiment_id.startswith(where.experiment_id_prefix)
            and (not where.states or e.state in where.states)
            and set(where.tags) <= set(e.tags)
        ]
        start = int(page_token or 0)
        end = start + (page_size or 50)
        return ExperimentPage(tuple(found[start:end]), str(end) if end < len(found) else "")

    async def cancel(self, experiment_id: str) -> Experiment:
        found = self._find(experiment_id)
        self.cancelled.append(experiment_id)
        return found if found.state.ended else replace(found, state=ExperimentState.CANCELLING)

    def _put(self, experiment: Experiment) -> Experiment:
        index = next(i for i, e in enumerate(self.experiments) if e.experiment_id == experiment.experiment_id)
        self.experiments[index] = experiment
        return experiment

    async def pause(self, experiment_id: str) -> Experiment:
        found = self._find(experiment_id)
        self.paused.append(experiment_id)
        return found if found.state.ended else self._put(replace(found, state=ExperimentState.PAUSED))

    async def resume(self, experiment_id: str, request_id: str = "") -> Experiment:
        found = self._find(experiment_id)
        self.resumed.append((experiment_id, request_id))
        if found.state is ExperimentState.CANCELLING:
            raise ExperimentNotEnded(f"Experiment {experiment_id!r} is still being cancelled: try again.")
        if found.state in (ExperimentState.PAUSED, ExperimentState.CANCELLED, ExperimentState.FAILED):
            return self._put(replace(found, state=ExperimentState.RUNNING, reason="", generation=found.generation + 1))
        return found

    async def retry(self, experiment_id: str, request_id: str = "") -> Experiment:
        found = self._find(experiment_id)
        self.retried.append((experiment_id, request_id))
        if not found.counts.failed:
            return found
        counts = replace(found.counts, failed=0, pending=found.counts.failed)
        return self._put(replace(found, state=ExperimentState.RUNNING, counts=counts, generation=found.generation + 1))

    async def update(self, experiment_id: str, update: ExperimentUpdate) -> Experiment:
        found = self._find(experiment_id)
        self.updated.append(update)
        changes = {name: getattr(update, name) for name in ("max_concurrency", "budget_nanousd", "budget_tokens")}
        return self._put(replace(found, **{name: value for name, value in changes.items() if value is not None}))

    async def list_events(
        self,
        experiment_id: str,
        after_event_seq: int = 0,
        page_size: int = 0,
        page_token: str = "",
        kinds: Sequence[str] = (),
    ) -> EventPage:
        self._find(experiment_id)
        self.event_pages.append((after_event_seq, page_size))
        after = int(page_token or after_event_seq)
        if after + 1 < self.first_event_seq:
            raise ResumeTokenExpired("events are no longer kept", earliest_event_seq=str(self.first_event_seq))
        found = [e for e in self.events if e.event_seq > after and (not kinds or e.kind in kinds)]
        page, rest = found[: page_size or 50], found[page_size or 50 :]
        return EventPage(tuple(page), str(page[-1].event_seq) if rest else "")

    async def delete(self, experiment_id: str) -> None:
        if experiment_id in self.deleted:
            return
        if not self._find(experiment_id).state.ended:
            raise ExperimentNotEnded(f"Experiment {experiment_id!r} has not ended: cancel it first.")
        self.deleted.append(experiment_id)
        self.experiments = [e for e in self.experiments if e.experiment_id != experiment_id]

    async def watch(
        self,
        experiment_id: str,
        resume_token: str = "",
        kinds: Sequence[str] = (),
        bookmark_interval: float | None = None,
    ) -> AsyncIterator[WatchMessage]:
        self.watches.append((experiment_id, resume_token, tuple(kinds)))
        found = self._find(experiment_id)
        if not resume_token:
            yield WatchMessage("t1", 1, snapshot=found)
        self.on_watch()
        if self.watch_errors:
            raise self.watch_errors.pop(0)
        for index in range(self.failed_runs):
            detail = {"error_reason": "PROVIDER_UNAVAILABLE", "error_message": "the provider is down", "stage_index": 0}
            event = Event(experiment_id, 2 + index, "default", "run.failed", EPOCH, 1, index, detail)
            yield WatchMessage(f"t{2 + index}", 2 + index, event=event)
        if self.hold is not None:
            await self.hold.wait()
        total = found.counts.total
        counts = RunCounts(
            total=total, completed=total - self.failed_runs, failed=self.failed_runs, cached=self.cached_runs
        )
        done = replace(found, counts=counts)
        yield WatchMessage("t8", 8, bookmark=done)
        ended = done if found.state.ended else replace(done, state=self.ends_as)
        self.experiments[self.experiments.index(found)] = ended
        yield WatchMessage("t9", 9, terminal=ended)

    async def get_run(self, run_id: str) -> Run:
        experiment_id, _, index = run_id.rpartition("-")
        for run in self.runs.get(experiment_id, []):
            if run.run_index == int(index):
                return run
        raise RunNotFound(f"There is no run {run_id!r}.")

    async def list_runs(
        self,
        experiment_id: str,
        page_size: int = 0,
        page_token: str = "",
        states: Sequence[RunState] = (),
        full: bool = False,
    ) -> RunPage:
        runs = [run for run in self.runs.get(experiment_id, []) if not states or run.state in states]
        return RunPage(tuple(runs[: page_size or 50]), "")

    async def cancel_run(self, run_id: str) -> Run:
        return await self.get_run(run_id)

    async def export(self, experiment_id: str, start_run_index: int = 0) -> AsyncIterator[Run]:
        self._find(experiment_id)
        for run in self.runs.get(experiment_id, []):
            if run.run_index >= start_run_index:
                yield run

    async def summarize(self, experiment_id: str) -> ExperimentSummary:
        return make_summary(self._find(experiment_id), self.gates)

    async def list_models(self) -> list[ModelInfo]:
        self._reach()
        return [
            ModelInfo("local/smollm2-135m-instruct", "local", True, None, Price(0, 0), "free"),
            ModelInfo("openai/gpt-4.1-mini", "openai", False, "OPENAI_API_KEY is not set", None),
        ]

    async def list_scorers(self) -> list[ScorerInfo]:
        settings: Mapping[str, Any] = {"type": "object", "properties": {"case": {"type": "boolean"}}}
        return [ScorerInfo("contains", "The value stands in the output.", {"type": "string"}, settings, True)]

    async def cache_stats(self) -> CacheStats:
        return self.cached

    async def purge_cache(self, scope: str, model: str = "") -> int:
        self.purged.append((scope, model))
        return 3


Invoke = Callable[..., Result]


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def promptlooper(runner: FakeRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Invoke:
    """Runs the command line in an empty folder, with stdout and stderr apart."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PROMPTLOOPER_")]:
        monkeypatch.delenv(name)

    def invoke(*args: str, input: str | None = None) -> Result:
        return CliRunner().invoke(main, list(args), obj=runner.opened, input=input)

    return invoke


class Make:
    """Builders of results; every field can be given."""

    run = staticmethod(make_run)
    failed_run = staticmethod(make_failed_run)
    experiment = staticmethod(make_experiment)
    summary = staticmethod(make_summary)


@pytest.fixture
def make() -> type[Make]:
    return Make
