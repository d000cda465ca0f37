"""A Runner over gRPC with a scripted core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import grpc
import pytest

from promptlooper.caching import CacheStats
from promptlooper.clients.runner import RunnerClient
from promptlooper.completion import Message, ModelInfo
from promptlooper.errors import DomainError, Problem
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
    Execution,
    ExperimentFilter,
    ExperimentPage,
    Experiments,
    OutputDelta,
    RunPage,
    RunWatchMessage,
    StartedRun,
    Validation,
    WatchMessage,
)
from promptlooper.rpc.client import open_channel
from promptlooper.rpc.server import serving
from promptlooper.run import Event, Run, RunError, RunState, Score, StageResult
from promptlooper.runner.servicer import SERVICE_NAME, register
from promptlooper.scoring import ScorerInfo
from promptlooper.sources import ExperimentSource, FilePiece, RenderedRun, RenderedStage, RunTarget, Uploaded
from promptlooper.wire.run import basic

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
EXPERIMENT = Experiment("exp1", "default", "capitals", ExperimentState.RUNNING, RunCounts(4, 1, 1, 1, 1), NOW)
ENDED = replace(EXPERIMENT, state=ExperimentState.COMPLETED, counts=RunCounts(4, completed=3, failed=1))
SUMMARY = ExperimentSummary(
    ENDED,
    (
        VariantSummary(
            *("0123456789ab", "direct", "direct", "gpt", {"temperature": 0}, 2, 2, 0, 0.5, None),
            *((ScorerSummary("exact", 0.5, 2, 0),), 10, 20, 100, 200, 5, 1),
        ),
    ),
    (GateResult("min_scores.exact", "0123456789ab", 0.8, 0.5, False),),
)
STAGE = StageResult(
    *(0, "think", (Message("user", "why?"),), "because", "m-1", "mock/m", {"temperature": 0}, 1, 2, None, None, 5),
    *(None, 7, 0, False, 1, "stop"),
)

RENDERED = RenderedRun(
    1,
    4,
    "0123456789ab",
    "direct · gpt",
    "in",
    0,
    (RenderedStage(0, "think", "mock/m", {"a": 1}, STAGE.messages, "why"),),
)


def run_of(index: int, output: str = "Paris") -> Run:
    return Run(
        run_id=f"exp1-{index}",
        experiment_id="exp1",
        project="default",
        generation=1,
        run_index=index,
        state=RunState.FAILED,
        input_index=index,
        input_id="in",
        variant_id="0123456789ab",
        pipeline="direct",
        model="gpt",
        params={"temperature": 0},
        repeat=0,
        input={"country": "France"},
        expected=0,
        output=output,
        score=0.0,
        passed=False,
        scores=(Score("exact", "exact", 0.0, False, 1.0, "no", None, {"a": 1}),),
        error=RunError("PROVIDER_REJECTED", "no", 0, "think", 1, False),
        tokens_in=1,
        tokens_out=2,
        tokens_reasoning=0,
        tokens_cached_in=0,
        cost_nanousd=None,
        cost_saved_nanousd=0,
        latency_ms=5,
        duration_ms=6,
        cached=False,
        attempts=1,
        stages=(STAGE,),
        tags=("t",),
        metadata={"k": "v"},
        created_at=NOW,
        started_at=NOW,
        completed_at=None,
    )


class ScriptedExperiments(Experiments):
    """Gives fixed answers and records its calls; raises `error` where one is set.

    A watch gives a snapshot, events 1 to `events` and a terminal message, an export gives `runs` runs, from where the
    caller is. `cut_after[i]` ends the i-th stream after so many messages: with `cut_with`, or well where it is None.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error: DomainError | None = None
        self.events = 6
        self.runs = 6
        self.output = "Paris"
        self.cut_after: list[int] = []
        self.cut_with: DomainError | None = None
        self.held = asyncio.Event()
        self.closed = asyncio.Event()

    def _called(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    async def create(self, spec: ExperimentSpec | ExperimentSource, request_id: str = "") -> Experiment:
        self._called("create", spec, request_id)
        return EXPERIMENT

    async def validate(self, spec: ExperimentSpec | ExperimentSource) -> Validation:
        self._called("validate", spec)
        return Validation((Problem("repeats", "too many", "a.yaml", 3),), 4, 8, None)

    async def get(self, experiment_id: str) -> Experiment:
        self._called("get", experiment_id)
        return EXPERIMENT

    async def list_experiments(
        self, where: ExperimentFilter, page_size: int = 0, page_token: str = ""
    ) -> ExperimentPage:
        self._called("list_experiments", where, page_size, page_token)
        return ExperimentPage((EXPERIMENT, ENDED), "next")

    async def cancel(self, experiment_id: str) -> Experiment:
        self._called("cancel", experiment_id)
        return ENDED

    async def resume(self, experiment_id: str, request_id: str = "") -> Experiment:
        self._called("resume", experiment_id, request_id)
        return EXPERIMENT

    async def retry(self, experiment_id: str, request_id: str = "") -> Experiment:
        self._called("retry", experiment_id, request_id)
        return EXPERIMENT

    async def delete(self, experiment_id: str) -> None:
        self._called("delete", experiment_id)

    async def watch(
        self,
        experiment_id: str,
        resume_token: str = "",
        kinds: Sequence[str] = (),
        bookmark_interval: float | None = None,
    ) -> AsyncIterator[WatchMessage]:
        self._called("watch", experiment_id, resume_token, kinds, bookmark_interval)
        try:
            if not resume_token:
                yield WatchMessage("0", 0, snapshot=EXPERIMENT)
            left = self.cut_after.pop(0) if self.cut_after else None
            for seq in range(int(resume_token or 0) + 1, self.events + 1):
                if left == 0:
                    if self.cut_with is not None:
                        raise self.cut_with
                    return
                left = left and left - 1
                if seq == 4:
                    yield WatchMessage("4", 4, bookmark=EXPERIMENT)
                else:
                    event = Event("exp1", seq, "default", "run.started", NOW, 1, seq, {"variant_id": "v", "repeat": 0})
                    yield WatchMessage(str(seq), seq, event=event)
            if self.held.is_set():
                await asyncio.Event().wait()
            yield WatchMessage(str(self.events), self.events, terminal=ENDED)
        finally:
            self.closed.set()

    async def get_run(self, run_id: str) -> Run:
        self._called("get_run", run_id)
        return run_of(0)

    async def list_runs(
        self,
        experiment_id: str,
        page_size: int = 0,
        page_token: str = "",
        states: Sequence[RunState] = (),
        full: bool = False,
    ) -> RunPage:
        self._called("list_runs", experiment_id, page_size, page_token, list(states), full)
        return RunPage((run_of(0), run_of(1)), "more")

    async def upload(self, piece: FilePiece) -> Uploaded:
        self._called("upload", piece)
        return Uploaded(len(piece.data), True)

    async def render(self, experiment: ExperimentSpec | ExperimentSource | str, run_index: int = 0) -> RenderedRun:
        self._called("render", experiment, run_index)
        return RENDERED

    async def start_run(self, target: RunTarget, request_id: str = "") -> StartedRun:
        self._called("start_run", target, request_id)
        return StartedRun("exp1-0", EXPERIMENT)

    async def watch_run(
        self, run_id: str, resume_token: str = "", bookmark_interval: float | None = None
    ) -> AsyncIterator[RunWatchMessage]:
        self._called("watch_run", run_id, resume_token, bookmark_interval)
        if not resume_token:
            yield RunWatchMessage("0", 0, snapshot=basic(run_of(0)))
        left = self.cut_after.pop(0) if self.cut_after else None
        for seq in range(int(resume_token or 0) + 1, self.events + 1):
            if left == 0:
                if self.cut_with is not None:
                    raise self.cut_with
                return
            left = left and left - 1
            event = Event("exp1", seq, "default", "run.started", NOW, 1, 0, {"variant_id": "v", "repeat": 0})
            yield RunWatchMessage(str(seq), seq, **({"bookmark": True} if seq == 4 else {"event": event}))
        yield RunWatchMessage(str(self.events), self.events, terminal=run_of(0))

    async def execute_run(self, target: RunTarget, timeout: float | None = None) -> AsyncIterator[Execution]:
        self._called("execute_run", target, timeout)
        try:
            yield Execution(delta=OutputDelta(0, "think", "beç"))
            yield Execution(stage=STAGE)
            if self.held.is_set():
                await asyncio.Event().wait()
            yield Execution(run=run_of(0))
        finally:
            self.closed.set()

    async def cancel_run(self, run_id: str) -> Run:
        self._called("cancel_run", run_id)
        return run_of(3)

    async def export(self, experiment_id: str, start_run_index: int = 0) -> AsyncIterator[Run]:
        self._called("export", experiment_id, start_run_index)
        left = self.cut_after.pop(0) if self.cut_after else None
        for index in range(start_run_index, self.runs):
            if left == 0 and self.cut_with is not None:
                raise self.cut_with
            left = left and left - 1
            yield run_of(index, self.output)

    async def summarize(self, experiment_id: str) -> ExperimentSummary:
        self._called("summarize", experiment_id)
        return SUMMARY

    async def list_models(self) -> list[ModelInfo]:
        self._called("list_models")
        return [ModelInfo("mock/echo", "mock", True)]

    async def list_scorers(self) -> list[ScorerInfo]:
        self._called("list_scorers")
        return [ScorerInfo("exact", "equal", {}, {}, True)]

    async def cache_stats(self) -> CacheStats:
        self._called("cache_stats")
        return CacheStats("redis", 1, 2, 3, 4)

    async def purge_cache(self, scope: str, model: str = "") -> int:
        self._called("purge_cache", scope, model)
        return 5


@dataclass
class RunnerOnWire:
    core: ScriptedExperiments
    client: RunnerClient
    channel: grpc.aio.Channel
    address: str
    port: int


@asynccontextmanager
async def running(core: ScriptedExperiments, port: int = 0, reconnect_for: float = 30.0) -> AsyncIterator[RunnerOnWire]:
    services = {SERVICE_NAME: partial(register, core=core)}
    async with serving(f"127.0.0.1:{port}", services, health_listen="127.0.0.1:0", grace=0.0) as server:
        address = f"127.0.0.1:{server.port}"
        async with open_channel(address) as channel:
            client = RunnerClient(channel, address, reconnect_for=reconnect_for)
            yield RunnerOnWire(core, client, channel, address, server.port)


@pytest.fixture
def runner_with() -> Callable[..., Any]:
    return running


@pytest.fixture
def new_core() -> type[ScriptedExperiments]:
    return ScriptedExperiments


@pytest.fixture
async def runner() -> AsyncIterator[RunnerOnWire]:
    async with running(ScriptedExperiments()) as runner:
        yield runner


@pytest.fixture
def known() -> Any:
    """The fixed answers."""
    return {
        "experiment": EXPERIMENT,
        "ended": ENDED,
        "summary": SUMMARY,
        "run_of": run_of,
        "rendered": RENDERED,
        "stage": STAGE,
    }
