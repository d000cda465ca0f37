"""The fast relatives of tests/faults: a Runner that is dead and does not know it, a create that was not heard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import pytest
import sqlalchemy as sa
from fault_checks import check, event_problems, row_problems, told
from runner_lab import Lab, ScriptedModel, ended, experiment

from promptlooper.completion import Price
from promptlooper.errors import StoreUnavailable
from promptlooper.experiment import CacheMode, CachePolicy
from promptlooper.experiments import ExperimentFilter
from promptlooper.runner.store import leases
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.models import runners
from promptlooper.testing.eventually import eventually

ROWS = [{"n": n} for n in range(6)]
PRICE = Price(1_000_000_000, 1_000_000_000)


def lost() -> None:
    raise StoreUnavailable("cut by a test")


def a_reaper_comes(experiment_id: str) -> Callable[[sa.Connection], int]:
    """What another Runner does once all leases have run out."""

    def reap(connection: sa.Connection) -> int:
        connection.execute(sa.update(runners).values(dead=True))
        return leases.give_back_orphans(connection, experiment_id, now_us=1)

    return reap


async def test_a_runner_that_wakes_after_its_runs_were_taken_changes_nothing(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    lab.model = asleep = ScriptedModel(lambda request: "too late", hold=True)
    asleep.price = PRICE
    spec = experiment("a {{ input.n }}", "b {{ prev_output }}", rows=ROWS, cache=CachePolicy(CacheMode.OFF))
    async with lab.runner(slots=len(ROWS)) as sleeper:  # all in use: what it does is of before
        created = await sleeper.create(spec)
        await eventually(lambda: asleep.running == len(ROWS))
        database = Database(lab.database_url)
        try:
            assert await database.write(a_reaper_comes(created.experiment_id)) == len(ROWS)
        finally:
            database.close()
        lab.model = awake = ScriptedModel(lambda request: "in time", hold=True)
        awake.price = PRICE
        async with lab.runner() as taker:
            await eventually(lambda: awake.running == len(ROWS))
            asleep.go.set()
            await eventually(partial(said, caplog, "outcomes refused"))
            before = await told(sleeper, created.experiment_id)
            assert [run.stages for run in before.runs] == [()] * len(ROWS)
            awake.go.set()
            await ended(taker, created.experiment_id)
            known = await told(taker, created.experiment_id)
    check(event_problems(known.events), row_problems(known))
    assert {run.output for run in known.runs} == {"in time"}
    assert set(asleep.calls.values()) == {1}


def said(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return text in caplog.text


async def test_a_create_whose_commit_was_not_heard_is_answered_by_its_retry(lab: Lab) -> None:
    lab.failpoints.actions["create_after_commit"] = lost
    lab.model.price = PRICE
    spec = experiment("{{ input.n }}", rows=ROWS)
    async with lab.runner() as runner:
        with pytest.raises(StoreUnavailable):
            await runner.create(spec, "unheard")
        del lab.failpoints.actions["create_after_commit"]
        answers = await asyncio.gather(*(runner.create(spec, "unheard") for _ in range(3)))
        (listed,) = (await runner.list_experiments(ExperimentFilter())).experiments
        assert {answer.experiment_id for answer in answers} == {listed.experiment_id}
        await ended(runner, listed.experiment_id)
        known = await told(runner, listed.experiment_id)
    check(event_problems(known.events), row_problems(known))
    assert set(lab.model.calls.values()) == {1}
