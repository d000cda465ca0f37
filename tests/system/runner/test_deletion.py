"""Large experiments are deleted in steps: at once for clients, their rows by and by, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from runner_lab import Lab, ended, experiment, exported, watched
from watch_lab import WatchedRunner, watched_runner

from promptlooper.clock import SystemClock
from promptlooper.embedded.composition import embedded
from promptlooper.embedded.home import database_path
from promptlooper.errors import ExperimentNotFound, StoreUnavailable
from promptlooper.experiment import ScorerSpec
from promptlooper.experiments import ExperimentFilter
from promptlooper.runner.core import RunnerCore
from promptlooper.runner.events import retention
from promptlooper.runner.events.retention import Retention
from promptlooper.runner.store import control, removal
from promptlooper.runner.store.database import Database, sqlite_url
from promptlooper.runner.store.migrate import upgrade
from promptlooper.runner.store.models import (
    events,
    experiments,
    inputs,
    progress,
    relay,
    runs,
    scores,
    stage_results,
)
from promptlooper.runner.store.rows import microseconds
from promptlooper.testing.eventually import eventually

OF_RUNS = (runs, stage_results, scores)
ALL = (*OF_RUNS, events, inputs, experiments, progress, relay)
MANY = 2_500  # rows of a table: three steps
SCORED = experiment("x", scorers=(ScorerSpec("fine", "contains", "fine"),))


def now_us() -> int:
    return microseconds(SystemClock().now())


async def rows_of(database: Database, experiment_id: str) -> dict[str, int]:
    def count(connection: sa.Connection) -> dict[str, int]:
        return {
            table.name: connection.execute(
                sa.select(sa.func.count()).select_from(table).where(table.c.experiment_id == experiment_id)
            ).scalar_one()
            for table in ALL
        }

    return {name: found for name, found in (await database.read(count)).items() if found}


def multiply(connection: sa.Connection, experiment_id: str) -> None:
    """Gives an experiment of one run many more."""
    for table in OF_RUNS:
        row = connection.execute(sa.select(table).where(table.c.experiment_id == experiment_id)).one()._asdict()
        connection.execute(sa.insert(table), [{**row, "run_index": n} for n in range(1, MANY)])


async def small(runner: WatchedRunner) -> str:
    created = await runner.core.create(SCORED)
    await ended(runner.core, created.experiment_id)
    return created.experiment_id


async def large(runner: WatchedRunner) -> str:
    experiment_id = await small(runner)
    await runner.database.write(partial(multiply, experiment_id=experiment_id), within=60)
    await runner.append(experiment_id, MANY)
    return experiment_id


async def half_deleted(runner: WatchedRunner) -> str:
    """What a Runner leaves that dies while it deletes a large experiment."""
    experiment_id = await large(runner)
    await runner.database.write(partial(control.delete, experiment_id=experiment_id, now_us=now_us()))
    place = removal.Place()
    for _ in range(2):
        remove = partial(removal.remove_some, experiment_id=experiment_id, place=place)
        place = await runner.database.write(remove) or pytest.fail("there is more to remove")
    return experiment_id


def cleaning(runner: WatchedRunner) -> Retention:
    return Retention(runner.database, SystemClock(), keep=0, relayed=False)


async def test_others_write_in_between_while_a_large_experiment_is_deleted(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        experiment_id = await large(runner)
        deleting = asyncio.create_task(runner.core.delete(experiment_id))
        await asyncio.sleep(0)  # its first write is under way
        await runner.database.write(lambda connection: None)
        assert not deleting.done()
        with pytest.raises(ExperimentNotFound):
            await runner.core.get(experiment_id)
        await deleting
        assert await rows_of(runner.database, experiment_id) == {}


async def test_no_step_of_a_deletion_takes_many_rows(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        experiment_id = await large(runner)
        await runner.database.write(partial(control.delete, experiment_id=experiment_id, now_us=now_us()))
        left = [sum((await rows_of(runner.database, experiment_id)).values())]
        place: removal.Place | None = removal.Place()
        while place is not None:
            remove = partial(removal.remove_some, experiment_id=experiment_id, place=place)
            place = await runner.database.write(remove)
            left.append(sum((await rows_of(runner.database, experiment_id)).values()))
        steps = [before - after for before, after in pairwise(left)]
        assert left[-1] == 0
        assert min(steps) > 0
        assert max(steps) < 2 * removal.AT_ONCE


async def is_out_of_sight(core: RunnerCore, experiment_id: str) -> bool:
    for ask in (core.get, core.cancel, core.pause, core.resume, core.retry, core.summarize, core.list_runs):
        with pytest.raises(ExperimentNotFound):
            await ask(experiment_id)
    for read in (exported, watched):
        with pytest.raises(ExperimentNotFound):
            await read(core, experiment_id)
    with pytest.raises(ExperimentNotFound):
        await core.get_run(f"{experiment_id}-{MANY - 1}")
    listed = (await core.list_experiments(ExperimentFilter())).experiments
    return experiment_id not in [e.experiment_id for e in listed]


async def test_what_a_runner_that_died_left_of_a_deletion_is_out_of_sight_and_goes_later(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        other = await small(runner)
        stored = await rows_of(runner.database, other)
        experiment_id = await half_deleted(runner)
        assert (await rows_of(runner.database, experiment_id))["scores"] == MANY - 2 * removal.AT_ONCE
        assert await is_out_of_sight(runner.core, experiment_id)
        await cleaning(runner).clean()
        assert await rows_of(runner.database, experiment_id) == {}
        assert await rows_of(runner.database, other) == stored
        await runner.core.delete(experiment_id)  # it is known that there was one


async def test_an_embedded_runner_removes_what_is_left_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "AT_LEAST", 0.0)
    monkeypatch.setattr(retention, "EVERY", 0.01)
    url = sqlite_url(database_path(tmp_path))
    upgrade(url)
    async with watched_runner(Lab(url, tmp_path)) as runner:
        experiment_id = await half_deleted(runner)
        async with embedded(tmp_path):
            await eventually(lambda: _is_removed(runner, experiment_id))


async def _is_removed(runner: WatchedRunner, experiment_id: str) -> bool:
    return not await rows_of(runner.database, experiment_id)


async def test_deleting_again_removes_what_the_first_time_left(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        experiment_id = await half_deleted(runner)
        await runner.core.delete(experiment_id)
        assert await rows_of(runner.database, experiment_id) == {}


async def test_several_that_remove_the_same_at_once_leave_nothing(lab: Lab) -> None:
    async with watched_runner(lab) as here, watched_runner(lab) as there:
        experiment_id = await large(here)
        deletions = [runner.core.delete(experiment_id) for runner in (here, there)]
        await asyncio.gather(*deletions, cleaning(here).clean(), cleaning(there).clean())
        assert await rows_of(here.database, experiment_id) == {}


async def test_an_outage_after_the_first_step_of_a_deletion_is_no_failure(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise StoreUnavailable("the database does not answer")

    async with watched_runner(lab) as runner:
        experiment_id = await large(runner)
        with monkeypatch.context() as outage:
            outage.setattr(removal, "remove_some", fails)
            await runner.core.delete(experiment_id)
            with pytest.raises(StoreUnavailable):
                await cleaning(runner).clean()
        assert (await rows_of(runner.database, experiment_id))["runs"] == MANY
        await cleaning(runner).clean()
        assert await rows_of(runner.database, experiment_id) == {}


async def test_an_export_that_a_deletion_overtakes_does_not_look_complete(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        created = await runner.core.create(experiment("{{ input.n }}", rows=[{"n": n} for n in range(250)]))
        await ended(runner.core, created.experiment_id)
        export = runner.core.export(created.experiment_id)
        await anext(export)
        await runner.core.delete(created.experiment_id)
        with pytest.raises(ExperimentNotFound):
            async for _ in export:
                pass
