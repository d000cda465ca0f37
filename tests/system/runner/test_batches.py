"""Experiments by batches, on SQLite and on PostgreSQL: what is asked, what comes back, what goes wrong on the way."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import sqlalchemy as sa
from batch_lab import by_batch, in_batch, left, model_of, read, runner_of, wrote
from runner_lab import Lab, ended, exported, stage, watched

from promptlooper.batches import BatchState
from promptlooper.completion import Price
from promptlooper.errors import (
    BatchCancelled,
    ContentFiltered,
    InvalidArgument,
    InvalidExperiment,
    ProviderCredentials,
    ProviderUnavailable,
    ServiceUnavailable,
)
from promptlooper.experiment import CacheMode, CachePolicy, Experiment, ExperimentSpec, ExperimentState
from promptlooper.run import Run, RunState
from promptlooper.runner.batches import BatchPace
from promptlooper.runner.ledger import RunRow
from promptlooper.runner.outcomes import BatchQuestion
from promptlooper.runner.store import batches as store
from promptlooper.runner.store import questions, repository
from promptlooper.runner.store.models import batch_items
from promptlooper.runner.store.questions import ANSWERED
from promptlooper.runner.store.turns import locked_ledger
from promptlooper.runner.turn import Turn
from promptlooper.sources import RunTarget
from promptlooper.testing.eventually import eventually

PRICE = Price(2_000_000, 4_000_000)


async def ran(lab: Lab, spec: ExperimentSpec) -> tuple[Experiment, list[Run]]:
    async with runner_of(lab) as runner:
        created = await runner.create(spec)
        await ended(runner, created.experiment_id)
        return await runner.get(created.experiment_id), await exported(runner, created.experiment_id)


async def test_all_questions_of_a_stage_go_in_one_batch_and_the_next_stages_in_another(lab: Lab) -> None:
    model = model_of(lab)
    spec = by_batch("a {{ input.n }}", "b {{ prev_output }}", count=4)
    result, runs = await ran(lab, spec)
    assert result.state is ExperimentState.COMPLETED
    assert result.counts.in_batch == 0
    assert model.asked == [[f"a {n}" for n in range(4)], [f"b <a {n}>" for n in range(4)]]
    assert not model.calls
    assert [run.output for run in runs] == [f"<b <a {n}>>" for n in range(4)]
    assert all(stage.batched and not stage.cached for run in runs for stage in run.stages)
    assert left(lab) == [0, 0, 0]


async def test_a_run_that_waits_holds_no_slot_and_says_so(lab: Lab) -> None:
    model = model_of(lab, hold_batches=True)
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch(count=5, limits={"max_concurrency": 2}))
        await in_batch(runner, created.experiment_id, 5)
        waiting = await runner.get(created.experiment_id)
        assert (waiting.counts.pending, waiting.counts.running) == (5, 0)
        await eventually(lambda: model.batches)
        model.finish()
        messages = await watched(runner, created.experiment_id)
        said = [m.event.detail.get("error_reason") for m in messages if m.event and m.event.kind == "run.waiting"]
        events = await runner.list_events(created.experiment_id, kinds=["run.waiting"])
    assert len(model.batches) == 1
    assert [event.detail["error_reason"] for event in events.events] == ["BATCH"] * 5
    assert set(said) <= {"BATCH"}


async def test_all_runs_wait_together_whatever_may_run_at_once(lab: Lab) -> None:
    model = model_of(lab)
    _, runs = await ran(lab, by_batch("{{ input.n }}", count=20, limits={"max_concurrency": 2}))
    assert [len(prompts) for prompts in model.asked] == [20]
    assert all(run.stages[0].batched for run in runs)


async def test_runs_that_wait_are_nothing_to_claim_until_their_answer_is_there(lab: Lab) -> None:
    model = model_of(lab, hold_batches=True)
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch(count=3))
        await in_batch(runner, created.experiment_id, 3)
        assert [one.room for one in read(lab, repository.active)[0]] == [0]
        await eventually(lambda: model.batches)
        await runner.pause(created.experiment_id)
        model.finish()
        await in_batch(runner, created.experiment_id, 0)
        await runner.resume(created.experiment_id)
        assert (await ended(runner, created.experiment_id)).counts.completed == 3


async def test_an_answer_that_comes_while_its_run_looks_for_it_wakes_it(lab: Lab) -> None:
    model = model_of(lab, hold_batches=True)
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch(count=1))
        await eventually(lambda: model.batches and left(lab)[1] == 1)

    def looks(connection: sa.Connection) -> tuple[int, int]:
        connection.execute(sa.update(batch_items).values(state=ANSWERED, result="{}"))
        ledger = locked_ledger(connection, created.experiment_id)
        row = RunRow(0, 0, "PENDING", None, 2, 0, not_before_us=9, in_batch=True)
        asked = BatchQuestion(0, "item", "mock/m", "{}")
        questions.keep(connection, Turn(ledger, "", 0, touched={0: row}, questions=[(row, asked)]))
        return row.not_before_us, ledger.in_batch

    assert wrote(lab, looks) == (0, 0)


async def test_the_question_of_a_cancelled_run_does_not_wait(lab: Lab) -> None:
    model_of(lab).price = PRICE
    limits = {"budget_nanousd": 200}  # for two: the others may still come
    spec = by_batch("{{ input.n }}", count=4, params={"max_tokens": 10}, limits=limits)
    async with runner_of(lab, batch_pace=BatchPace(0.02, quiet=60)) as runner:
        created = await runner.create(spec)
        await in_batch(runner, created.experiment_id, 2)
        await runner.cancel_run(f"{created.experiment_id}-1")
        stands = read(lab, partial(store.standing, experiment_id=created.experiment_id, now_us=0))
        assert (stands.waiting, stands.coming) == (1, True)
        await runner.cancel(created.experiment_id)


async def test_answers_are_remembered_and_what_the_cache_has_is_not_asked(lab: Lab) -> None:
    model = model_of(lab)
    await ran(lab, by_batch(count=2))
    result, runs = await ran(lab, by_batch(count=3))
    assert model.asked == [["say 0", "say 1"], ["say 2"]]
    assert result.counts.cached == 2
    assert [run.stages[0].batched for run in runs] == [False, False, True]


async def test_equal_questions_are_one_item_that_one_run_pays_for(lab: Lab) -> None:
    model = model_of(lab)
    model.price = PRICE
    result, runs = await ran(lab, by_batch("the same", count=3))
    assert model.asked == [["the same"]]
    assert [run.stages[0].cached for run in runs] == [False, True, True]
    assert result.cost_nanousd == runs[0].cost_nanousd == (8 * 2 + 10 * 4) // 2


async def test_without_the_cache_nothing_is_shared(lab: Lab) -> None:
    model = model_of(lab)
    await ran(lab, by_batch("the same", count=3, cache=CachePolicy(CacheMode.OFF)))
    assert model.asked == [["the same"] * 3]


async def test_each_model_has_its_own_batch(lab: Lab) -> None:
    model = model_of(lab)
    spec = by_batch(stage("{{ input.n }}"), stage("then {{ input.n }}", model="other/m"), count=2)
    await ran(lab, spec)
    assert [batch.items[0].request.model for batch in model.batches.values()] == ["mock/m", "other/m"]


@pytest.mark.parametrize("which", ["0", "*"])
async def test_what_expires_is_asked_directly(lab: Lab, which: str) -> None:
    model = model_of(lab, hold_batches=True)
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch("{{ input.n }}", count=3))
        await eventually(lambda: model.batches)
        model.finish(but=[which])
        assert (await ended(runner, created.experiment_id)).state is ExperimentState.COMPLETED
        runs = await exported(runner, created.experiment_id)
    direct = ["0", "1", "2"] if which == "*" else ["0"]
    assert sorted(model.calls) == direct
    assert [run.stages[0].batched for run in runs] == [run.output[1:-1] not in direct for run in runs if run.output]


async def test_transient_errors_and_refusals_of_items_are_asked_directly(lab: Lab) -> None:
    model = model_of(lab)
    model.refuses = lambda item: InvalidArgument("no images") if "2" in item.request.messages[-1].content else None
    broken = iter([ProviderUnavailable("503")])
    model.say = lambda request: next(broken, "fine")
    result, _ = await ran(lab, by_batch("{{ input.n }}", count=3))
    assert result.counts.completed == 3
    assert model.asked == [["0", "1"]]
    assert set(model.calls) == {"0", "2"}


async def test_an_item_that_can_not_succeed_fails_its_run_and_is_asked_anew_by_a_retry(lab: Lab) -> None:
    model = model_of(lab)
    model.say = lambda request: ContentFiltered("no") if request.messages[-1].content == "1" else "fine"
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch("{{ input.n }}", count=3))
        assert (await ended(runner, created.experiment_id)).counts.failed == 1
        model.say = lambda request: "fine"
        await runner.retry(created.experiment_id)
        assert (await ended(runner, created.experiment_id)).counts.completed == 3
    assert model.asked == [["0", "1", "2"], ["1"]]
    assert not model.calls


async def test_a_batch_that_the_provider_does_not_take_is_asked_directly(lab: Lab) -> None:
    model = model_of(lab)
    refuse = iter([InvalidArgument("no batches of this model")])

    def on_submit() -> None:
        for error in refuse:
            raise error

    model.on_submit = on_submit
    result, runs = await ran(lab, by_batch("{{ input.n }}", count=2))
    assert result.counts.completed == 2
    assert not model.batches
    assert not any(run.stages[0].batched for run in runs)


async def test_a_submission_whose_answer_was_lost_is_looked_for_first(lab: Lab) -> None:
    model = model_of(lab)
    lost = iter([ServiceUnavailable("cut off")])

    def on_submitted() -> None:
        for error in lost:
            raise error

    model.on_submitted = on_submitted
    result, _ = await ran(lab, by_batch(count=2))
    assert result.counts.completed == 2
    (label,) = model.batches
    assert model.submissions == [(label, False), (label, True)]


async def test_a_batch_that_takes_too_long_is_cancelled_and_the_rest_asked_directly(lab: Lab) -> None:
    model = model_of(lab, hold_batches=True)
    spec = by_batch("{{ input.n }}", count=2)
    async with runner_of(lab) as runner:
        spec = replace(spec, execution=replace(spec.execution, timeout=0.1))
        created = await runner.create(spec)
        assert (await ended(runner, created.experiment_id)).counts.completed == 2
    (batch,) = model.batches.values()
    assert batch.state is BatchState.ENDED
    assert sorted(model.calls) == ["0", "1"]


async def test_a_batch_that_the_provider_forgot_or_cancelled_is_asked_directly(lab: Lab) -> None:
    model = model_of(lab, hold_batches=True)
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch("{{ input.n }}", "then {{ input.n }}", count=2))
        await eventually(lambda: model.batches)
        model.batches.clear()
        await eventually(lambda: model.batches)  # of the second stage
        model.finish(but="*", error=BatchCancelled)
        assert (await ended(runner, created.experiment_id)).counts.completed == 2
    assert sum(model.calls.values()) == 4


async def test_cancelling_an_experiment_cancels_its_batches_and_keeps_what_was_answered(lab: Lab) -> None:
    model = model_of(lab, hold_batches=True)
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch("{{ input.n }}", count=3))
        await eventually(lambda: model.batches)
        model.lost_by_cancelling = ["1"]
        cancelled = await runner.cancel(created.experiment_id)
        assert (cancelled.state, cancelled.counts.in_batch) == (ExperimentState.CANCELLED, 0)
        await eventually(lambda: left(lab)[1:] == [0, 0])
        await runner.resume(created.experiment_id)
        await eventually(lambda: len(model.batches) == 2)
        model.finish()
        assert (await ended(runner, created.experiment_id)).counts.completed == 3
        runs = await exported(runner, created.experiment_id)
    assert model.asked == [["0", "1", "2"], ["1"]]
    assert all(run.stages[0].batched for run in runs)
    assert not model.calls


async def test_a_batch_whose_key_is_gone_waits_for_it_until_it_is_given_up(lab: Lab) -> None:
    model = model_of(lab, hold_batches=True)
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch("{{ input.n }}", count=2))
        await eventually(lambda: model.batches)
        model.lost = ProviderCredentials("the key is gone")
        await runner.cancel(created.experiment_id)
        await eventually(lambda: left(lab) == [2, 0, 0])
        model.lost, model.hold_batches = None, False
        await runner.resume(created.experiment_id)
        assert (await ended(runner, created.experiment_id)).counts.completed == 2
    assert model.asked == [["0", "1"]] * 2


async def test_a_paused_experiment_hands_nothing_in_and_takes_answers_when_it_goes_on(lab: Lab) -> None:
    model = model_of(lab, hold_batches=True)
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch("a {{ input.n }}", "b {{ input.n }}", count=2))
        await eventually(lambda: model.batches)
        await runner.pause(created.experiment_id)
        model.finish()
        await eventually(lambda: left(lab)[1] == 0)
        assert (await runner.get(created.experiment_id)).counts.pending == 2
        await runner.resume(created.experiment_id)
        await eventually(lambda: len(model.batches) == 2)
        model.finish()
        assert (await ended(runner, created.experiment_id)).counts.completed == 2


async def test_a_cancelled_run_is_not_handed_in_later(lab: Lab) -> None:
    model = model_of(lab, hold_batches=True)
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch("a {{ input.n }}", count=3))
        await eventually(lambda: model.batches)
        await runner.cancel_run(f"{created.experiment_id}-1")
        model.finish()
        result = await ended(runner, created.experiment_id)
    assert (result.counts.completed, result.counts.cancelled) == (2, 1)


async def test_the_run_timeout_counts_the_batch_and_the_stage_timeout_does_not(lab: Lab) -> None:
    model = model_of(lab, hold_batches=True)
    async with runner_of(lab) as runner:
        limits = {"stage_timeout": 0.5, "run_timeout": 1.0}
        created = await runner.create(by_batch("{{ input.n }}", count=1, limits=limits))
        result = await ended(runner, created.experiment_id)
        (run,) = await exported(runner, created.experiment_id)
    assert result.counts.failed == 1
    assert run.error is not None
    assert run.error.reason == "DEADLINE_EXCEEDED"
    assert "limits.run_timeout" in run.error.message
    assert not model.calls


async def test_a_deleted_experiment_leaves_nothing_behind(lab: Lab) -> None:
    model = model_of(lab, hold_batches=True)
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch("{{ input.n }}", count=2))
        await eventually(lambda: model.batches)
        await runner.cancel(created.experiment_id)
        await runner.delete(created.experiment_id)
        await eventually(lambda: left(lab) == [0, 0, 0])
    (batch,) = model.batches.values()
    assert batch.state is not BatchState.RUNNING


async def test_a_budget_is_held_at_the_batchs_price_while_its_questions_are_in_it(lab: Lab) -> None:
    model = model_of(lab, hold_batches=True)
    model.price = PRICE
    spec = by_batch("{{ input.n }}", count=4, params={"max_tokens": 10}, limits={"budget_nanousd": 200})
    async with runner_of(lab, batch_pace=BatchPace(0.02, quiet=0.1)) as runner:
        created = await runner.create(spec)
        await in_batch(runner, created.experiment_id, 2)
        held = await runner.get(created.experiment_id)
        most = held.cost_reserved_nanousd // 2
        assert held.cost_reserved_nanousd + most > 200 >= held.cost_reserved_nanousd > 0
        await eventually(lambda: model.batches)
        model.finish()
        await eventually(lambda: len(model.batches) == 2)
        model.finish()
        result = await ended(runner, created.experiment_id)
    assert result.counts.completed == 4
    assert result.cost_reserved_nanousd == result.cost_uncertain_nanousd == 0
    assert 0 < result.cost_nanousd <= 200


async def test_what_is_given_up_in_a_batch_counts_against_the_budget(lab: Lab) -> None:
    model = model_of(lab, hold_batches=True)
    model.price = PRICE
    spec = by_batch("{{ input.n }}", count=1, params={"max_tokens": 10}, limits={"budget_nanousd": 1000})
    async with runner_of(lab) as runner:
        created = await runner.create(spec)
        await in_batch(runner, created.experiment_id, 1)
        reserved = (await runner.get(created.experiment_id)).cost_reserved_nanousd
        await eventually(lambda: model.batches)
        result = await runner.cancel(created.experiment_id)
    assert (result.cost_reserved_nanousd, result.cost_uncertain_nanousd) == (0, reserved)


async def test_another_runner_goes_on_with_the_batches_of_one_that_left(lab: Lab) -> None:
    model = model_of(lab, hold_batches=True)
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch("{{ input.n }}", count=3))
        await eventually(lambda: model.batches and left(lab)[1] == 1)
    model.finish()
    async with runner_of(lab) as runner:
        assert (await ended(runner, created.experiment_id)).counts.completed == 3
    assert len(model.batches) == 1
    assert not model.calls


async def test_two_runners_hand_each_question_in_once(lab: Lab) -> None:
    model = model_of(lab)
    async with runner_of(lab) as one, runner_of(lab) as two:
        spec = by_batch("a {{ input.n }}", "b {{ input.n }}", count=40, limits={"max_concurrency": 8})
        first, second = await one.create(spec), await two.create(by_batch("c {{ input.n }}", count=40))
        for runner, created in ((two, first), (one, second)):
            assert (await ended(runner, created.experiment_id)).counts.completed == 40
    asked = [prompt for prompts in model.asked for prompt in prompts]
    assert len(asked) == len(set(asked)) == 120
    assert all(not again for _, again in model.submissions)


async def test_a_single_run_is_asked_directly(lab: Lab) -> None:
    model = model_of(lab)
    async with runner_of(lab) as runner:
        messages = [message async for message in runner.execute_run(RunTarget(by_batch(count=1)))]
    assert messages[-1].run is not None
    assert messages[-1].run.state is RunState.COMPLETED
    assert not model.batches


async def test_a_model_whose_provider_has_no_batches_is_refused(lab: Lab) -> None:
    model_of(lab).batching = False
    async with runner_of(lab) as runner:
        with pytest.raises(InvalidExperiment, match="'mock/m' answers no batches; take 'execution: direct'"):
            await runner.create(by_batch())
