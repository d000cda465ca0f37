"""The Runner's core: what clients may ask of it, with no transport in sight."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial

from promptlooper.caching import CacheStats, ResponseCache
from promptlooper.clock import Clock, IdMaker
from promptlooper.completion import CompletionGateway, ModelInfo
from promptlooper.digest import sha256_hex
from promptlooper.errors import (
    ExperimentNotFound,
    InvalidArgument,
    InvalidExperiment,
    StoreUnavailable,
)
from promptlooper.experiment import Experiment, ExperimentSpec, ExperimentSummary
from promptlooper.experiments import (
    EventPage,
    Execution,
    ExperimentFilter,
    ExperimentPage,
    ExperimentUpdate,
    RunPage,
    RunWatchMessage,
    StartedRun,
    Validation,
    WatchMessage,
)
from promptlooper.failpoints import Failpoints
from promptlooper.run import Run, RunState
from promptlooper.runner import page_tokens
from promptlooper.runner.bounds import LARGEST
from promptlooper.runner.creating import Creation, check_request_id
from promptlooper.runner.engine import Engine
from promptlooper.runner.events.hub import Hub
from promptlooper.runner.events.run_watching import RunWatching
from promptlooper.runner.events.watching import Watching
from promptlooper.runner.executing import Executions
from promptlooper.runner.preview import place_of, rendered, rendered_at
from promptlooper.runner.render import Renderer
from promptlooper.runner.runs import Runs, no_run, run_place
from promptlooper.runner.sources import LONG_WORK, Sources
from promptlooper.runner.spec.check_services import check
from promptlooper.runner.spec.check_spec import MAX_CONCURRENCY, problems_of
from promptlooper.runner.store import control, removal, repository
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.rows import microseconds
from promptlooper.runner.store.summary import summarize
from promptlooper.runner.targets import Targets
from promptlooper.scoring import ScorerInfo, ScoringService
from promptlooper.sources import ExperimentSource, FilePiece, RenderedRun, RunTarget, Uploaded

EXPERIMENT_ID = re.compile(r"[a-z0-9-]{1,63}")


class RunnerCore:
    """Implements `promptlooper.experiments.Experiments` over the database; the engine does the work."""

    def __init__(
        self,
        database: Database,
        engine: Engine,
        hub: Hub,
        gateway: CompletionGateway,
        cache: ResponseCache,
        scoring: ScoringService,
        renderer: Renderer,
        clock: Clock,
        new_id: IdMaker,
        failpoints: Failpoints,
        executions: Executions,
        upload_limit: int,
    ) -> None:
        self._database, self._engine, self._hub = database, engine, hub
        self._gateway, self._cache, self._scoring = gateway, cache, scoring
        self._renderer, self._clock = renderer, clock
        self._watching = Watching(database, hub, clock)
        self._runs = Runs(database, self.get)
        self._run_watching = RunWatching(database, self._watching, self._runs)
        self._executions = executions
        checked = partial(check, gateway=gateway, scoring=scoring, renderer=renderer)
        self._sources = Sources(database, clock, checked, upload_limit)
        self._targets = Targets(database, self._sources, self._runs)
        self._creation = Creation(database, engine, gateway, scoring, renderer, clock, new_id, failpoints)

    def _now_us(self) -> int:
        return microseconds(self._clock.now())

    async def create(self, experiment: ExperimentSpec | ExperimentSource, request_id: str = "") -> Experiment:
        check_request_id(request_id)
        given = await self._sources.given(experiment)
        return await self._changed(await self._creation.create(given, request_id))

    async def validate(self, experiment: ExperimentSpec | ExperimentSource) -> Validation:
        return await self._creation.validate(await self._sources.given(experiment))

    async def upload(self, piece: FilePiece) -> Uploaded:
        return await self._sources.upload(piece)

    async def render(self, experiment: ExperimentSpec | ExperimentSource | str, run_index: int = 0) -> RenderedRun:
        if not isinstance(experiment, str):
            given = await self._sources.given(experiment)
            if problems := problems_of(given.spec, renderer=self._renderer):
                raise InvalidExperiment(given.located(problems))
            return rendered(given.spec, run_index, self._renderer)
        source = await self._runs.source(experiment)
        place = place_of(source.grid, run_index)
        row = await self._database.read(
            partial(repository.input_at, experiment_id=experiment, input_index=place.input_index)
        )
        variant = source.variants[place.variant_index]
        return rendered_at(source.spec, variant, row, place, source.grid.total, self._renderer)

    async def start_run(self, target: RunTarget, request_id: str = "") -> StartedRun:
        check_request_id(request_id)
        given = await self._targets.one_run(target)
        experiment = await self._changed(await self._creation.create(given, request_id))
        return StartedRun(f"{experiment.experiment_id}-0", experiment)

    def execute_run(self, target: RunTarget, timeout: float | None = None) -> AsyncIterator[Execution]:
        return self._executions.execute(target, self._targets, timeout, lambda: self._hub.draining)

    async def get(self, experiment_id: str) -> Experiment:
        if not EXPERIMENT_ID.fullmatch(experiment_id):
            raise _no_experiment(experiment_id)
        get = partial(repository.get, experiment_id=experiment_id, now_us=self._now_us())
        return await self._database.read(get, urgent=True)

    async def list_experiments(
        self, where: ExperimentFilter, page_size: int = 0, page_token: str = ""
    ) -> ExperimentPage:
        bound_to = ["experiments", where.project, where.tags, where.metadata, [s.value for s in where.states]]
        bound_to.append(where.experiment_id_prefix)
        after = page_tokens.place_of(page_token, bound_to)
        found, following = await self._database.read(
            partial(
                repository.page,
                where=where,
                limit=page_tokens.page_size_of(page_size),
                after=None if after is None else (after[0], after[1]),
                now_us=self._now_us(),
            )
        )
        return ExperimentPage(
            tuple(found), "" if following is None else page_tokens.page_token(list(following), bound_to)
        )

    async def cancel(self, experiment_id: str) -> Experiment:
        await self.get(experiment_id)
        now_us = self._now_us()
        cancel = partial(control.cancel, experiment_id=experiment_id, now_us=now_us)
        await self._database.write(cancel, within=LONG_WORK)
        return await self._changed(experiment_id)

    async def pause(self, experiment_id: str) -> Experiment:
        await self.get(experiment_id)
        await self._database.write(partial(control.pause, experiment_id=experiment_id, now_us=self._now_us()))
        return await self._changed(experiment_id)

    async def resume(self, experiment_id: str, request_id: str = "") -> Experiment:
        return await self._restart(control.resume, "resume", experiment_id, request_id)

    async def retry(self, experiment_id: str, request_id: str = "") -> Experiment:
        return await self._restart(control.retry, "retry", experiment_id, request_id)

    async def _restart(
        self, restart: Callable[..., None], verb: str, experiment_id: str, request_id: str
    ) -> Experiment:
        check_request_id(request_id)
        await self.get(experiment_id)
        who = control.Restart(experiment_id, request_id, sha256_hex([verb, experiment_id]), self._engine.own_only)
        await self._database.write(partial(restart, who=who, now_us=self._now_us()), within=LONG_WORK)
        self._engine.take_up(experiment_id)
        return await self._changed(experiment_id)

    async def update(self, experiment_id: str, update: ExperimentUpdate) -> Experiment:
        await self.get(experiment_id)
        _check_update(update)
        change = partial(control.update, experiment_id=experiment_id, wanted=update, now_us=self._now_us())
        await self._database.write(change)
        return await self._changed(experiment_id)

    async def _changed(self, experiment_id: str) -> Experiment:
        """The experiment as it stands now, and a hint to every Runner to look at it."""
        self._engine.hint()
        self._hub.changed(experiment_id)
        return await self.get(experiment_id)

    async def delete(self, experiment_id: str) -> None:
        if not EXPERIMENT_ID.fullmatch(experiment_id):
            raise _no_experiment(experiment_id)
        delete = partial(control.delete, experiment_id=experiment_id, now_us=self._now_us())
        await self._database.write(delete, within=LONG_WORK)
        self._hub.changed(experiment_id)
        with suppress(TimeoutError, StoreUnavailable):  # it is deleted; what is left goes with the next cleaning
            async with asyncio.timeout(LONG_WORK):
                await removal.remove(self._database, experiment_id)

    async def drain(self, seconds: float) -> None:
        """Starts nothing more; see `Engine.drain`."""
        await self._engine.drain(seconds)

    async def list_events(
        self,
        experiment_id: str,
        after_event_seq: int = 0,
        page_size: int = 0,
        page_token: str = "",
        kinds: Sequence[str] = (),
    ) -> EventPage:
        await self.get(experiment_id)
        return await self._watching.list_events(experiment_id, after_event_seq, page_size, page_token, kinds)

    def watch(
        self,
        experiment_id: str,
        resume_token: str = "",
        kinds: Sequence[str] = (),
        bookmark_interval: float | None = None,
    ) -> AsyncIterator[WatchMessage]:
        return self._watching.watch(experiment_id, resume_token, kinds, bookmark_interval)

    async def get_run(self, run_id: str) -> Run:
        return await self._runs.get(run_id)

    async def list_runs(
        self,
        experiment_id: str,
        page_size: int = 0,
        page_token: str = "",
        states: Sequence[RunState] = (),
        full: bool = False,
    ) -> RunPage:
        return await self._runs.page(experiment_id, page_size, page_token, states, full)

    def watch_run(
        self, run_id: str, resume_token: str = "", bookmark_interval: float | None = None
    ) -> AsyncIterator[RunWatchMessage]:
        return self._run_watching.watch(run_id, resume_token, bookmark_interval)

    async def cancel_run(self, run_id: str) -> Run:
        experiment_id, run_index = run_place(run_id)
        await self.get(experiment_id)
        cancel = partial(control.cancel_run, experiment_id=experiment_id, run_index=run_index, now_us=self._now_us())
        state = await self._database.write(cancel)
        if state is None:
            raise no_run(run_id)
        if state is RunState.RUNNING:
            self._engine.cancel_run(experiment_id, run_index)
        self._engine.hint()
        self._hub.changed(experiment_id)
        return await self.get_run(run_id)

    def export(self, experiment_id: str, start_run_index: int = 0) -> AsyncIterator[Run]:
        return self._runs.export(experiment_id, start_run_index)

    async def summarize(self, experiment_id: str) -> ExperimentSummary:
        source = await self._runs.source(experiment_id)
        return await self._database.read(partial(summarize, source=source), within=LONG_WORK)

    async def list_models(self) -> list[ModelInfo]:
        return await self._gateway.list_models()

    async def list_scorers(self) -> list[ScorerInfo]:
        return await self._scoring.list_scorers()

    async def cache_stats(self) -> CacheStats:
        return await self._cache.stats()

    async def purge_cache(self, scope: str, model: str = "") -> int:
        return await self._cache.purge(scope, model)


def _no_experiment(experiment_id: str) -> ExperimentNotFound:
    return ExperimentNotFound(f"there is no experiment {experiment_id!r}; see `list`", experiment_id=experiment_id)


def _check_update(update: ExperimentUpdate) -> None:
    if update.max_concurrency is not None and not 1 <= update.max_concurrency <= MAX_CONCURRENCY:
        raise InvalidArgument(
            f"max_concurrency must be from 1 to {MAX_CONCURRENCY:,}, not {update.max_concurrency}",
            field="max_concurrency",
        )
    for name in ("budget_nanousd", "budget_tokens"):
        value = getattr(update, name)
        if value is not None and not 1 <= value <= LARGEST:
            raise InvalidArgument(f"{name} must be at least 1, not {value}", field=name)
