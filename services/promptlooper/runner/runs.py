"""Runs as clients read them: one, a page, all of an experiment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

from promptlooper.errors import RunNotFound
from promptlooper.experiment import Experiment
from promptlooper.experiments import RunPage
from promptlooper.run import Run, RunState
from promptlooper.runner import page_tokens
from promptlooper.runner.spec.expand import variants
from promptlooper.runner.store import repository
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.reading import RunSource, read_runs

EXPORT_PAGE = 200


class Runs:
    """Reads runs; `get_experiment` gives the experiment of an id."""

    def __init__(self, database: Database, get_experiment: Callable[[str], Awaitable[Experiment]]) -> None:
        self._database, self._get = database, get_experiment

    async def get(self, run_id: str) -> Run:
        experiment_id, run_index = run_place(run_id)
        source = await self.source(experiment_id)
        read = partial(read_runs, source=source, start=0, limit=1, full=True, only=run_index)
        if not (found := await self._database.read(read)):
            raise no_run(run_id)
        return found[0]

    async def page(
        self,
        experiment_id: str,
        page_size: int = 0,
        page_token: str = "",
        states: Sequence[RunState] = (),
        full: bool = False,
    ) -> RunPage:
        bound_to = ["runs", experiment_id, [state.value for state in states], full]
        after = page_tokens.place_of(page_token, bound_to)
        limit = page_tokens.page_size_of(page_size)
        source = await self.source(experiment_id)
        start = 0 if after is None else after[0]
        read = partial(read_runs, source=source, start=start, limit=limit + 1, full=full, states=states)
        found = await self._database.read(read)
        shown, rest = found[:limit], found[limit:]
        if not rest and shown:  # the page may have ended at its size in bytes
            rest = await self._database.read(
                partial(read_runs, source=source, start=shown[-1].run_index + 1, limit=1, full=False, states=states)
            )
        return RunPage(tuple(shown), page_tokens.page_token([rest[0].run_index], bound_to) if rest else "")

    async def export(self, experiment_id: str, start_run_index: int = 0) -> AsyncIterator[Run]:
        source = await self.source(experiment_id)
        start = start_run_index
        while True:
            page = await self._database.read(
                partial(read_runs, source=source, start=start, limit=EXPORT_PAGE, full=True)
            )
            for run in page:
                yield run
            if not page:
                return
            start = page[-1].run_index + 1

    async def source(self, experiment_id: str) -> RunSource:
        experiment = await self._get(experiment_id)
        spec, _ = await self._database.read(partial(repository.spec_of, experiment_id=experiment_id))
        return RunSource(experiment, spec, variants(spec))


def run_place(run_id: str) -> tuple[str, int]:
    """Its experiment_id and run_index. Raises RunNotFound for what is no run_id."""
    experiment_id, dash, index = run_id.rpartition("-")
    if not dash or not index.isdecimal() or len(index) > 18:
        raise no_run(run_id)
    return experiment_id, int(index)


def no_run(run_id: str) -> RunNotFound:
    return RunNotFound(f"there is no run {run_id!r}, or it has not started; see `list` and `export`", run_id=run_id)
