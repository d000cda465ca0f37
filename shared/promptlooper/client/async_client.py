"""The Runner for asyncio programs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import EllipsisType
from typing import Self

from promptlooper.client.holding import Held
from promptlooper.client.results import AsyncResult
from promptlooper.client.submitting import AnyExperiment, Given, sent, submission, target
from promptlooper.client.traces import traced
from promptlooper.clients.following import all_events, items_of
from promptlooper.clients.opening import Target, opened, usual_home, usual_providers, usual_server
from promptlooper.completion import ModelInfo
from promptlooper.experiment import Experiment, ExperimentState, ExperimentSummary, experiment_states
from promptlooper.experiments import (
    Execution,
    ExperimentFilter,
    Experiments,
    ExperimentUpdate,
    RunWatchMessage,
    StartedRun,
    Validation,
    WatchMessage,
)
from promptlooper.jsonvalue import Json
from promptlooper.rows import NANO
from promptlooper.rpc.security import ChannelSecurity
from promptlooper.run import Event, Run
from promptlooper.scoring import ScorerInfo
from promptlooper.sources import RenderedRun

_PAGE = 200
LOOK_EVERY = 1.0  # seconds between two looks at the counts
ENDS = ("experiment.completed", "experiment.cancelled", "experiment.failed")


AnyPath = str | os.PathLike[str] | None


def target_of(
    address: str | None, home: AnyPath, token_file: AnyPath, ca_file: AnyPath, cert_file: AnyPath, key_file: AnyPath
) -> Target:
    """Where a client looks, and how: what it is given, else what the environment says."""
    server = address if address is not None or home is not None else usual_server()
    usual = ChannelSecurity.from_environment(os.environ)
    security = replace(
        usual,
        token_file=usual.token_file if token_file is None else Path(token_file),
        ca_file=usual.ca_file if ca_file is None else Path(ca_file),
        cert_file=usual.cert_file if cert_file is None else Path(cert_file),
        key_file=usual.key_file if key_file is None else Path(key_file),
    )
    return Target(server, usual_home() if home is None else Path(home).absolute(), usual_providers(), security)


class AsyncClient:
    """Runs experiments, follows them and reads their results, from asyncio programs.

    `address` is that of a Runner, or several (`10.0.0.1:7051,10.0.0.2:7051`); by default PROMPTLOOPER_SERVER. Without
    either, experiments run in this process, with their data in the folder `home` (default PROMPTLOOPER_HOME, else
    `.promptlooper`), for as long as the client is open. It connects when it is first used; streams go on by themselves
    after a lost connection. `ca_file` switches TLS on; `token_file`, `cert_file` and `key_file` say who calls; what is
    not given is read from PROMPTLOOPER_SERVER_CA_FILE and its like. Failures are those of `promptlooper.errors`.
    Belongs to one event loop.

    >>> async def main():
    ...     async with AsyncClient() as client:
    ...         result = await client.run("capitals.yaml")
    ...         return [run.output async for run in result.rows()]
    >>> asyncio.run(main())
    ['The capital of France', 'The capital of Japan']
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token_file: AnyPath = None,
        ca_file: AnyPath = None,
        cert_file: AnyPath = None,
        key_file: AnyPath = None,
        home: AnyPath = None,
    ) -> None:
        self._target = target_of(address, home, token_file, ca_file, cert_file, key_file)
        self._held: Held[Experiments] = Held(self._opened)
        self._working: dict[str, ExitStack] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Experiments on a server go on; those in this process stop, and can be resumed."""
        await self._held.close()

    async def run(
        self,
        experiment: AnyExperiment,
        *,
        request_id: str = "",
        on_progress: Callable[[Experiment], None] | None = None,
    ) -> AsyncResult:
        """Creates an experiment and follows it to its end. `on_progress` hears about every second how it stands."""
        with traced("promptlooper run"):
            created = await self.create(experiment, request_id=request_id)
            return await self.wait(created.experiment_id, on_progress=on_progress)

    async def wait(self, experiment_id: str, *, on_progress: Callable[[Experiment], None] | None = None) -> AsyncResult:
        """Follows an experiment to its end. One that is paused is waited for."""
        async with aclosing(self.follow(experiment_id, kinds=ENDS, bookmark_interval=LOOK_EVERY)) as messages:
            async for message in messages:
                if message.experiment is not None and on_progress is not None:
                    on_progress(message.experiment)
        return await self.result(experiment_id)

    async def result(self, experiment_id: str) -> AsyncResult:
        """The results so far."""
        return AsyncResult(await self.summarize(experiment_id), self)

    async def create(self, experiment: AnyExperiment, *, request_id: str = "") -> Experiment:
        """Stores an experiment, which then starts by itself. `experiment` is the path of an experiment file, a mapping
        that holds what such a file does, or an ExperimentSpec. A file is sent as it is, with the files that it names.
        The same `request_id` with the same experiment gives the first answer again. Raises InvalidExperiment with all
        that is wrong."""
        experiments = await self._held.get()
        sending = await asyncio.to_thread(submission, experiment)
        with traced("promptlooper create"):
            created = await sending.sent(experiments, lambda given: experiments.create(given, request_id))
        self._work_on(created.experiment_id)
        return created

    async def validate(self, experiment: AnyExperiment) -> Validation:
        """How many runs and calls it would make, and about what they cost; stores nothing. Of a file that cannot be
        read as an experiment it raises InvalidExperiment."""
        experiments = await self._held.get()
        return await (await asyncio.to_thread(submission, experiment)).sent(experiments, experiments.validate)

    async def render(self, experiment: AnyExperiment | Experiment, run_index: int = 0) -> RenderedRun:
        """The exact messages of a run's first stage, with placeholders those of later ones; calls no model. An
        Experiment is one that is stored."""
        experiments = await self._held.get()
        return await sent(experiments, experiment, lambda given: experiments.render(given, run_index))

    async def get(self, experiment_id: str) -> Experiment:
        """Raises ExperimentNotFound."""
        return await (await self._held.get()).get(experiment_id)

    async def list(
        self,
        *,
        project: str = "",
        tags: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
        states: Sequence[ExperimentState | str] = (),
    ) -> AsyncGenerator[Experiment, None]:
        """Experiments, newest first: those of a project, with all of the tags and metadata, in one of the states."""
        experiments = await self._held.get()
        where = ExperimentFilter(project, tuple(tags), dict(metadata or {}), experiment_states(states))
        token = ""
        while True:
            page = await experiments.list_experiments(where, _PAGE, token)
            for experiment in page.experiments:
                yield experiment
            token = page.next_page_token
            if not token:
                return

    async def watch(
        self, experiment_id: str, *, after: int = 0, kinds: Sequence[str] = ()
    ) -> AsyncGenerator[Event, None]:
        """The events of an experiment in order and each once, to its end: first those that have happened, then the
        others as they do. `after` is the number of the last event that is known already; `kinds` are those wanted,
        such as `run.failed`. Raises ResumeTokenExpired where events after that number are no longer kept."""
        experiments = await self._held.get()
        async with aclosing(all_events(experiments, experiment_id, after, kinds)) as events:
            async for event in events:
                yield event

    async def follow(
        self,
        experiment_id: str,
        *,
        resume_token: str = "",
        kinds: Sequence[str] = (),
        bookmark_interval: float | None = None,
    ) -> AsyncGenerator[WatchMessage, None]:
        """How an experiment stands, then each event as it happens, between them bookmarks with how it stands by then,
        and at the end how it ended. Goes on after the message that `resume_token` is of. A bookmark comes after
        `bookmark_interval` seconds (default 15)."""
        experiments = await self._held.get()
        stream = experiments.watch(experiment_id, resume_token, kinds, bookmark_interval)
        async with aclosing(items_of(stream)) as messages:
            async for message in messages:
                if message.terminal is not None:
                    self._let_go(experiment_id)
                yield message

    async def cancel(self, experiment_id: str) -> Experiment:
        """Stops it; what was answered is kept. One that ended stays as it is."""
        return await (await self._held.get()).cancel(experiment_id)

    async def pause(self, experiment_id: str) -> Experiment:
        """Starts nothing new of it until it is resumed; calls under way end."""
        return await (await self._held.get()).pause(experiment_id)

    async def resume(self, experiment_id: str, *, request_id: str = "") -> Experiment:
        """Goes on with one that was paused, cancelled or interrupted, each run after its last stored stage."""
        experiments = await self._held.get()
        self._work_on(experiment_id)
        return await experiments.resume(experiment_id, request_id)

    async def retry(self, experiment_id: str, *, request_id: str = "") -> Experiment:
        """Runs the failed runs again, each from the stage that failed."""
        experiments = await self._held.get()
        self._work_on(experiment_id)
        return await experiments.retry(experiment_id, request_id)

    async def update(
        self,
        experiment_id: str,
        *,
        max_concurrency: int | None = None,
        budget_usd: float | Decimal | None = None,
        budget_tokens: int | None = None,
    ) -> Experiment:
        """Changes limits, also while it runs; None stays as it is. What is spent already counts."""
        budget = None if budget_usd is None else int(Decimal(str(budget_usd)) * NANO)
        change = ExperimentUpdate(max_concurrency, budget, budget_tokens)
        return await (await self._held.get()).update(experiment_id, change)

    async def delete(self, experiment_id: str) -> None:
        """Forgets it with its results. Raises ExperimentNotEnded while it runs."""
        await (await self._held.get()).delete(experiment_id)

    async def summarize(self, experiment_id: str) -> ExperimentSummary:
        """Results by variant, and the gates."""
        return await (await self._held.get()).summarize(experiment_id)

    async def rows(self, experiment_id: str, *, start: int = 0) -> AsyncGenerator[Run, None]:
        """Every run that has started, in full, by run index, from the one with index `start`."""
        experiments = await self._held.get()
        async with aclosing(items_of(experiments.export(experiment_id, start))) as runs:
            async for run in runs:
                yield run

    async def get_run(self, run_id: str) -> Run:
        """One run in full. Raises RunNotFound."""
        return await (await self._held.get()).get_run(run_id)

    async def cancel_run(self, run_id: str) -> Run:
        """Stops one run that has started."""
        return await (await self._held.get()).cancel_run(run_id)

    async def start_run(
        self,
        experiment: AnyExperiment | Experiment,
        *,
        row: Json | EllipsisType = ...,
        variant_id: str = "",
        request_id: str = "",
    ) -> StartedRun:
        """Stores one run as an experiment of its own, which then starts by itself. `row` stands for the inputs that the
        experiment has, with `expected` and `_id` where they are wanted; it is needed where there are several, as
        `variant_id` is. An Experiment is one that is stored, whose pipelines are used as they were."""
        experiments = await self._held.get()
        with traced("promptlooper start_run"):
            started = await sent(
                experiments, experiment, lambda given: experiments.start_run(target(given, row, variant_id), request_id)
            )
        self._work_on(started.experiment.experiment_id)
        return started

    async def watch_run(
        self, run_id: str, *, resume_token: str = "", bookmark_interval: float | None = None
    ) -> AsyncGenerator[RunWatchMessage, None]:
        """As `follow`, of one run: at the end it comes in full."""
        experiments = await self._held.get()
        async with aclosing(items_of(experiments.watch_run(run_id, resume_token, bookmark_interval))) as messages:
            async for message in messages:
                yield message

    async def execute(
        self,
        experiment: AnyExperiment | Experiment,
        *,
        row: Json | EllipsisType = ...,
        variant_id: str = "",
        timeout: float | None = None,
    ) -> AsyncGenerator[Execution, None]:
        """One run now, as `start_run` takes it, for this caller alone: it waits in no queue and is not stored. Outputs
        come as they are generated, then each stage, and at the end the run in full. Who leaves it, or has waited
        `timeout` seconds, stops its calls."""
        experiments = await self._held.get()

        async def begun(given: Given) -> tuple[Execution, AsyncGenerator[Execution, None]]:
            stream = items_of(experiments.execute_run(target(given, row, variant_id), timeout))
            return await anext(stream), stream

        with traced("promptlooper execute"):  # to its first message: a generator must not keep a context
            first, stream = await sent(experiments, experiment, begun)
        async with aclosing(stream):
            yield first
            async for message in stream:
                yield message

    async def models(self) -> Sequence[ModelInfo]:
        """What can be asked."""
        return await (await self._held.get()).list_models()

    async def scorers(self) -> Sequence[ScorerInfo]:
        """How outputs can be scored."""
        return await (await self._held.get()).list_scorers()

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Experiments]:
        try:
            async with opened(self._target) as experiments:
                yield experiments
        finally:
            for experiment_id in [*self._working]:
                self._let_go(experiment_id)

    def _work_on(self, experiment_id: str) -> None:
        """Says to other processes on the same embedded data that this one does, to the end of the experiment or of this
        client."""
        if self._target.server is None and experiment_id not in self._working:
            self._working[experiment_id] = ExitStack()
            self._working[experiment_id].enter_context(self._target.working_on(experiment_id))

    def _let_go(self, experiment_id: str) -> None:
        if (working := self._working.pop(experiment_id, None)) is not None:
            working.close()
