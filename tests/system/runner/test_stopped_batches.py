"""Batches that are to stop, are too much, or may be at the provider or not: what it is asked, and what not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa
from batch_lab import BatchingModel, by_batch, echo, left, model_of, read, runner_of
from runner_lab import Lab, ended

from promptlooper.batches import BatchState
from promptlooper.errors import ProviderRejected, ServiceUnavailable
from promptlooper.experiment import ExperimentState
from promptlooper.runner import batches
from promptlooper.runner.store import batches as store
from promptlooper.testing.eventually import eventually


def stop_reasons(connection: sa.Connection) -> list[str]:
    return list(connection.execute(sa.select(store.batches.c.stop_reason)).scalars())


class AwayModel(BatchingModel):
    """Cuts submissions off as long as it is `away`: before it takes the batch, or with `takes` after it."""

    def __init__(self, *, takes: bool = False) -> None:
        super().__init__(echo, hold_batches=True)
        self.away = True
        if takes:
            self.on_submitted = self._cut
        else:
            self.on_submit = self._cut

    def _cut(self) -> None:
        if self.away:
            raise ServiceUnavailable("cut off")


@pytest.mark.parametrize("takes", [False, True])
async def test_a_cancelled_experiment_hands_nothing_in_any_more_and_stops_what_is_there(lab: Lab, takes: bool) -> None:
    model = lab.model = AwayModel(takes=takes)
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch(count=2))
        await eventually(lambda: model.submissions)
        await runner.cancel(created.experiment_id)
        await eventually(lambda: read(lab, stop_reasons) == [store.EXPERIMENT])
        model.away = False
        await eventually(lambda: left(lab)[1:] == [0, 0])
    assert [batch.state for batch in model.batches.values()] == ([BatchState.ENDED] if takes else [])


async def test_a_batch_of_a_deleted_experiment_is_found_and_stopped(lab: Lab) -> None:
    model = lab.model = AwayModel(takes=True)
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch(count=2))
        await eventually(lambda: model.submissions)
        await runner.cancel(created.experiment_id)
        await runner.delete(created.experiment_id)
        await eventually(lambda: left(lab)[0] == 0)
        model.away = False
        await eventually(lambda: left(lab) == [0, 0, 0])
    assert [batch.state for batch in model.batches.values()] == [BatchState.ENDED]


async def test_an_experiment_that_is_deleted_while_its_batch_is_handed_in_leaves_none_at_the_provider(lab: Lab) -> None:
    model = model_of(lab, hold_batches=True)
    async with runner_of(lab) as runner:
        model.says_so.clear()
        created = await runner.create(by_batch(count=2))
        await eventually(lambda: model.batches)
        await runner.cancel(created.experiment_id)
        await runner.delete(created.experiment_id)
        model.says_so.set()
        await eventually(lambda: left(lab) == [0, 0, 0])
    assert [batch.state for batch in model.batches.values()] == [BatchState.ENDED]


async def test_a_paused_experiment_submits_nothing_again(lab: Lab) -> None:
    model = lab.model = AwayModel()
    async with runner_of(lab) as runner:
        paused = await runner.create(by_batch("a {{ input.n }}", count=2))
        await eventually(lambda: model.submissions)
        await runner.pause(paused.experiment_id)
        model.hold_batches = False
        (label,) = {label for label, _ in model.submissions}
        other = await runner.create(by_batch("b", count=1))
        await eventually(lambda: {other for other, _ in model.submissions} > {label})
        model.away = False
        await ended(runner, other.experiment_id)
        assert label not in model.batches
        await runner.resume(paused.experiment_id)
        assert (await ended(runner, paused.experiment_id)).counts.completed == 2
    assert label in model.batches


async def test_what_is_too_much_for_the_provider_waits_and_goes_in_smaller_batches(lab: Lab) -> None:
    model = model_of(lab)
    model.room = 3
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch("{{ input.n }}", count=8))
        assert (await ended(runner, created.experiment_id)).counts.completed == 8
    assert not model.calls
    sizes = [(len(batch.items), batch.too_much) for batch in model.batches.values()]
    halved = [(8, True), (4, True), (2, False)]
    assert sizes == [*halved, (4, True), (2, False), (4, True), (2, False), (2, False)]


async def test_what_is_too_much_for_too_long_is_asked_directly(lab: Lab) -> None:
    model = model_of(lab)
    model.room = 0
    spec = by_batch("{{ input.n }}", count=2)
    async with runner_of(lab) as runner:
        created = await runner.create(replace(spec, execution=replace(spec.execution, timeout=0.3)))
        assert (await ended(runner, created.experiment_id)).counts.completed == 2
    assert sorted(model.calls) == ["0", "1"]
    assert len(model.batches) > 1


async def test_results_that_the_provider_has_no_more_are_asked_for_once_and_what_came_is_kept(lab: Lab) -> None:
    model = model_of(lab)
    model.breaks_off = ProviderRejected("there is no such file")
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch("{{ input.n }}", count=3))
        assert (await ended(runner, created.experiment_id)).counts.completed == 3
    assert sorted(model.calls) == ["0", "1"]
    assert len(model.batches) == 1


async def test_a_batch_that_never_stops_is_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "GRACE", 0.2)
    model = model_of(lab, hold_batches=True)
    model.ends_cancelled = False
    spec = by_batch("{{ input.n }}", count=2)
    async with runner_of(lab) as runner:
        created = await runner.create(replace(spec, execution=replace(spec.execution, timeout=0.1)))
        result = await ended(runner, created.experiment_id)
    assert (result.state, result.counts.completed) == (ExperimentState.COMPLETED, 2)
    assert [batch.state for batch in model.batches.values()] == [BatchState.CANCELLING]
    assert sorted(model.calls) == ["0", "1"]
