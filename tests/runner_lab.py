"""A Runner in this process on a real database, with a model that does what the test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptlooper.cache.core import CacheCore
from promptlooper.cache.store.local import LocalStore
from promptlooper.caching import ResponseCache
from promptlooper.completion import Completion, CompletionRequest, ModelCheck, ModelInfo, OnDelta, Price
from promptlooper.experiment import (
    CachePolicy,
    Experiment,
    ExperimentSpec,
    InputRow,
    Limits,
    MessageTemplate,
    ModelEntry,
    Pipeline,
    Stage,
)
from promptlooper.experiments import WatchMessage
from promptlooper.failpoints import Failpoints
from promptlooper.run import Run
from promptlooper.runner.app import runner_core
from promptlooper.runner.core import RunnerCore
from promptlooper.runner.events.hub import Hub
from promptlooper.runner.events.relay import Relay
from promptlooper.runner.store.database import Database
from promptlooper.scorer.registry import ScorerCore

Said = str | Completion | Exception


class ScriptedModel:
    """A gateway: `say(request)` gives the text, the completion or the error. Calls wait until `go` is set."""

    def __init__(
        self, say: Callable[[CompletionRequest], Said] = lambda request: "fine", *, hold: bool = False
    ) -> None:
        self.say = say
        self.calls: Counter[str] = Counter()  # by last message
        self.requests: list[CompletionRequest] = []
        self.running = self.most_running = 0
        self.price: Price | None = None
        self.go = asyncio.Event()
        self.called = asyncio.Event()
        if not hold:
            self.go.set()

    async def complete(self, request: CompletionRequest, on_delta: OnDelta | None = None) -> Completion:
        self.calls[request.messages[-1].content] += 1
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.called.set()
        try:
            await self.go.wait()
            await asyncio.sleep(0)
        finally:
            self.running -= 1
        said = self.say(request)
        if isinstance(said, Exception):
            raise said
        if isinstance(said, Completion):
            return said
        if on_delta is not None:
            for word in said.split():
                on_delta(word)
        tokens_in = sum(len(m.content) for m in request.messages)
        cost = None
        if self.price is not None:
            parts = tokens_in * self.price.input_nanousd_per_mtok + len(said) * self.price.output_nanousd_per_mtok
            cost = -(-parts // 1_000_000)
        return Completion(said, request.model, "stop", tokens_in, len(said), latency_ms=5, cost_nanousd=cost)

    async def check_models(self, models: Sequence[str]) -> list[ModelCheck]:
        return [ModelCheck(model, price=self.price) for model in models]

    async def list_models(self) -> list[ModelInfo]:
        return []


def stage(prompt: str, name: str = "", **settings: Any) -> Stage:
    return Stage((MessageTemplate("user", prompt),), name, **settings)


def experiment(
    *prompts: str | Stage,
    rows: Sequence[Any] = ({"n": 1},),
    limits: Mapping[str, Any] | None = None,
    cache: CachePolicy | None = None,
    **settings: Any,
) -> ExperimentSpec:
    """One pipeline over `rows`; a row is its value or an InputRow."""
    stages = tuple(p if isinstance(p, Stage) else stage(p) for p in prompts)
    inputs = tuple(r if isinstance(r, InputRow) else InputRow("", r) for r in rows)
    pipeline = Pipeline("direct", stages, (ModelEntry("m", "mock/m"),))
    settings = {"name": "test", "pipelines": (pipeline,), **settings}
    return ExperimentSpec(inputs=inputs, limits=Limits(**(limits or {})), cache=cache or CachePolicy(), **settings)


@dataclass
class Lab:
    """Runners on one database, one after another or at once."""

    database_url: str
    folder: Path
    model: ScriptedModel = field(default_factory=ScriptedModel)
    failpoints: Failpoints = field(default_factory=Failpoints)
    cache: ResponseCache | None = None  # in place of a file

    @asynccontextmanager
    async def runner(self, *, nats_url: str = "", **settings: Any) -> AsyncIterator[RunnerCore]:
        async with AsyncExitStack() as stack:
            database, hub = Database(self.database_url), Hub()
            stack.callback(database.close)
            if nats_url:
                await stack.enter_async_context(Relay(database, hub, nats_url).running())
            store = await stack.enter_async_context(LocalStore(self.folder / "cache.db"))
            settings = {"failpoints": self.failpoints, "hub": hub, **settings}
            core = runner_core(database, self.model, self.cache or CacheCore(store), ScorerCore(), **settings)
            yield await stack.enter_async_context(core)

    async def ran(self, spec: ExperimentSpec) -> tuple[Experiment, list[Run]]:
        """Runs an experiment to its end."""
        async with self.runner() as runner:
            created = await runner.create(spec)
            await ended(runner, created.experiment_id)
            return await runner.get(created.experiment_id), await exported(runner, created.experiment_id)


async def watched(runner: RunnerCore, experiment_id: str, token: str = "") -> list[WatchMessage]:
    """Everything that a watch says to its end."""
    return [message async for message in runner.watch(experiment_id, token)]


async def ended(runner: RunnerCore, experiment_id: str) -> Experiment:
    last = (await watched(runner, experiment_id))[-1]
    assert last.terminal is not None
    return last.terminal


async def exported(runner: RunnerCore, experiment_id: str) -> list[Run]:
    return [run async for run in runner.export(experiment_id)]
