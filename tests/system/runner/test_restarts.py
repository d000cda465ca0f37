"""Pause, resume, retry, change and time limits, with one Runner and with several, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from runner_lab import Lab, ScriptedModel, ended, experiment, exported, watched

from promptlooper.completion import Completion, CompletionRequest, Price
from promptlooper.errors import (
    ExperimentCancelled,
    ExperimentNotEnded,
    InvalidArgument,
    ProviderRateLimited,
    ProviderRejected,
    RequestIdReused,
)
from promptlooper.experiment import CacheMode, CachePolicy, ExperimentState, ScorerSpec
from promptlooper.experiments import ExperimentUpdate, WatchMessage
from promptlooper.run import Run, RunState
from promptlooper.runner.core import RunnerCore
from promptlooper.runner.events.watching import token_of
from promptlooper.testing.eventually import eventually

ROWS = [{"n": n} for n in range(12)]
TWO_STAGES = ("first {{ input.n }}", "second {{ input.n }} after {{ prev_output }}")
ANEW = CachePolicy(CacheMode.OFF)  # so that a repeated call is seen
SCORED = (ScorerSpec("right", "contains", "{{ input.n }}", threshold=1),)


def echo(request: CompletionRequest) -> str:
    return f"<{request.messages[-1].content}>"


def kinds(messages: Sequence[WatchMessage]) -> list[str]:
    return [message.event.kind for message in messages if message.event]


def facts(runs: Sequence[Run]) -> list[tuple[object, ...]]:
    """What must be the same of a run however often it was interrupted."""
    return [
        (r.run_index, r.state, r.output, r.score, r.tokens_in, r.tokens_out, r.cost_nanousd, len(r.stages), r.attempts)
        for r in runs
    ]


async def calls_are(lab: Lab, count: int) -> None:
    await eventually(lambda: sum(lab.model.calls.values()) == count and lab.model.running == min(count, 4))


def let_those_end_that_run(lab: Lab) -> None:
    """Calls that wait now are answered, those that come after wait."""
    lab.model.go.set()
    lab.model.go.clear()


async def state_is(runner: RunnerCore, experiment_id: str, state: ExperimentState, running: int = 0) -> None:
    async def reached() -> bool:
        now = await runner.get(experiment_id)
        return (now.state, now.counts.running) == (state, running)

    await eventually(reached)


async def test_a_paused_experiment_keeps_what_is_answered_and_starts_nothing_until_it_is_resumed(lab: Lab) -> None:
    lab.model.say = echo
    quiet, expected = await lab.ran(experiment(*TWO_STAGES, rows=ROWS, scorers=SCORED, cache=ANEW))
    lab.model.calls.clear()
    lab.model.go.clear()
    async with lab.runner() as runner:
        limits = {"max_concurrency": 4}
        created = await runner.create(experiment(*TWO_STAGES, rows=ROWS, limits=limits, scorers=SCORED, cache=ANEW))
        name = created.experiment_id
        await calls_are(lab, 4)
        paused = await runner.pause(name)
        assert paused.state is ExperimentState.PAUSED
        lab.model.go.set()
        await state_is(runner, name, ExperimentState.PAUSED)
        assert sum(lab.model.calls.values()) == 4
        again = await runner.pause(name)
        assert again.event_seq == (await runner.get(name)).event_seq
        watching = asyncio.create_task(watched(runner, name))
        resumed = await runner.resume(name)
        assert (resumed.state, resumed.generation) == (ExperimentState.RUNNING, 2)
        assert (await runner.resume(name)).generation == 2
        messages = await watching
        done = await runner.get(name)
        runs = await exported(runner, name)
        events = (await runner.list_events(name, page_size=1000)).events
    assert facts(runs) == facts(expected)
    assert (done.tokens_in, done.tokens_out) == (quiet.tokens_in, quiet.tokens_out)
    assert set(lab.model.calls.values()) == {1}
    assert messages[-1].terminal is not None
    assert [e.kind for e in events if e.run_index is None] == [
        "experiment.created",
        "experiment.started",
        "experiment.paused",
        "experiment.resumed",
        "experiment.completed",
    ]
    assert [e.event_seq for e in events] == list(range(1, done.event_seq + 1))


async def test_a_paused_experiment_can_be_cancelled(lab: Lab) -> None:
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS * 50))
        await runner.pause(created.experiment_id)
        await runner.cancel(created.experiment_id)
        done = await ended(runner, created.experiment_id)
        assert (done.state, done.reason) == (ExperimentState.CANCELLED, "USER")
        assert done.counts.pending == done.counts.running == 0


async def test_a_cancelled_experiment_is_resumed_and_gives_what_an_uninterrupted_one_gives(lab: Lab) -> None:
    lab.model.say = echo
    quiet, expected = await lab.ran(experiment(*TWO_STAGES, rows=ROWS, scorers=SCORED, cache=ANEW))
    lab.model.calls.clear()
    async with lab.runner() as runner:
        held = asyncio.Event()

        def say(request: CompletionRequest) -> str:
            if sum(lab.model.calls.values()) >= 11 and not held.is_set():
                lab.model.go.clear()
                held.set()
            return echo(request)

        lab.model.say = say
        limits = {"max_concurrency": 4}
        created = await runner.create(experiment(*TWO_STAGES, rows=ROWS, limits=limits, scorers=SCORED, cache=ANEW))
        name = created.experiment_id
        await held.wait()
        await eventually(lambda: lab.model.running > 0)
        await runner.cancel(name)
        first = await ended(runner, name)
        token = (await watched(runner, name))[-1].resume_token
        assert first.counts.cancelled > 0
        lab.model.go.set()
        resumed = await runner.resume(name, "again")
        assert (resumed.generation, resumed.counts.cancelled) == (2, 0)
        messages = await watched(runner, name, token)
        done = await ended(runner, name)
        assert (await runner.resume(name, "again")).generation == 2  # the first answer, not another generation
        with pytest.raises(RequestIdReused):
            await runner.retry(name, "again")
        runs = await exported(runner, name)
        events = (await runner.list_events(name, page_size=1000)).events
    assert (done.state, done.counts.completed) == (ExperimentState.COMPLETED, len(ROWS))
    assert facts(runs) == facts(expected)
    assert (done.tokens_in, done.tokens_out) == (quiet.tokens_in, quiet.tokens_out)
    assert max(lab.model.calls.values()) == 2  # what was in flight is asked again, nothing that was stored
    assert kinds(messages)[0] == "experiment.resumed"
    assert [e.event_seq for e in events] == list(range(1, done.event_seq + 1))
    assert {e.kind: e.generation for e in events if e.kind in ("experiment.cancelled", "experiment.completed")} == {
        "experiment.cancelled": 1,
        "experiment.completed": 2,
    }


async def test_a_watch_from_before_the_end_goes_on_into_the_next_generation(lab: Lab) -> None:
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS))
        name = created.experiment_id
        await runner.cancel(name)
        await ended(runner, name)
        early = (await runner.list_events(name)).events[0]
        assert early.kind == "experiment.created"
        await runner.resume(name)
        messages = await watched(runner, name, token_of(name, 1))
    assert [m.terminal is not None for m in messages].count(True) == 1
    assert messages[-1].terminal is not None
    assert messages[-1].terminal.state is ExperimentState.COMPLETED
    assert kinds(messages).count("experiment.cancelled") == 1
    assert kinds(messages).count("experiment.completed") == 1


async def test_retry_runs_only_what_failed_from_the_stage_that_failed(lab: Lab) -> None:
    broken = True

    def say(request: CompletionRequest) -> str | Exception:
        text = request.messages[-1].content
        if broken and text.startswith("second 3"):
            return ProviderRejected("no", attempts=1)
        return echo(request)

    lab.model.say = say
    async with lab.runner() as runner:
        created = await runner.create(experiment(*TWO_STAGES, rows=ROWS, scorers=SCORED, cache=ANEW))
        name = created.experiment_id
        first = await ended(runner, name)
        assert (first.counts.completed, first.counts.failed) == (11, 1)
        broken = False
        retried = await runner.retry(name, "r1")
        assert (retried.generation, retried.counts.failed) == (2, 0)
        done = await ended(runner, name)
        runs = await exported(runner, name)
        assert (await runner.retry(name)).generation == 2  # nothing has failed
        assert (await runner.retry(name, "r1")).generation == 2
    assert (done.state, done.counts.completed, done.counts.failed) == (ExperimentState.COMPLETED, 12, 0)
    assert runs[3].state is RunState.COMPLETED
    assert runs[3].error is None
    assert runs[3].output == "<second 3 after <first 3>>"
    assert [s.stage_index for s in runs[3].stages] == [0, 1]
    assert runs[3].generation == 2
    assert runs[2].generation == 1
    assert lab.model.calls["first 3"] == 1
    assert sum(lab.model.calls.values()) == 25
    assert done.tokens_out == sum(run.tokens_out for run in runs)


async def test_retry_asks_again_what_the_content_filter_withheld(lab: Lab) -> None:
    filtering = True

    def say(request: CompletionRequest) -> str | Completion:
        text = request.messages[-1].content
        if filtering and text == "second 1":
            return Completion("", request.model, "content_filter", 3, 0, latency_ms=1)
        return f"<{text}>"

    lab.model.say = say
    async with lab.runner() as runner:
        spec = experiment("first {{ input.n }}", "second {{ input.n }}", "third {{ prev_output }}", rows=ROWS[:3])
        created = await runner.create(spec)
        first = await ended(runner, created.experiment_id)
        assert first.counts.failed == 1
        filtering = False
        await runner.retry(created.experiment_id)
        done = await ended(runner, created.experiment_id)
        run = await runner.get_run(f"{created.experiment_id}-1")
    assert done.counts.completed == 3
    assert run.output == "<third <second 1>>"
    assert [s.stage_index for s in run.stages] == [0, 1, 2]
    assert lab.model.calls["first 1"] == 1


async def test_what_can_not_be_restarted_now_is_refused(lab: Lab) -> None:
    lab.model.go.clear()
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS))
        await runner.cancel(created.experiment_id)
        await ended(runner, created.experiment_id)
        with pytest.raises(ExperimentCancelled):
            await runner.retry(created.experiment_id)
        with pytest.raises(InvalidArgument):
            await runner.resume(created.experiment_id, "no spaces")


async def test_concurrency_can_be_changed_while_the_experiment_runs(lab: Lab) -> None:
    lab.model.go.clear()
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS * 4, limits={"max_concurrency": 2}))
        name = created.experiment_id
        await eventually(lambda: lab.model.running == 2)
        raised = await runner.update(name, ExperimentUpdate(max_concurrency=7))
        assert raised.max_concurrency == 7
        await eventually(lambda: lab.model.running == 7)
        await runner.update(name, ExperimentUpdate(max_concurrency=1))
        let_those_end_that_run(lab)
        await eventually(lambda: (lab.model.calls.total(), lab.model.running) == (8, 1))
        lab.model.most_running = 0
        lab.model.go.set()
        done = await ended(runner, name)
        events = (await runner.list_events(name, kinds=["experiment.updated"])).events
    assert done.counts.completed == 48
    assert lab.model.most_running == 1
    assert [e.detail["max_concurrency"] for e in events] == [7, 1]


async def test_limits_that_make_no_sense_are_refused(lab: Lab) -> None:
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS))
        for wrong in (
            ExperimentUpdate(max_concurrency=0),
            ExperimentUpdate(max_concurrency=1_000_000),
            ExperimentUpdate(budget_tokens=0),
            ExperimentUpdate(budget_nanousd=5),  # it has no budget
        ):
            with pytest.raises(InvalidArgument):
                await runner.update(created.experiment_id, wrong)


async def test_a_larger_budget_lets_an_experiment_go_on_that_was_stopped_by_it(lab: Lab) -> None:
    lab.model.price = Price(1_000_000_000, 1_000_000_000)
    spec = experiment("{{ input.n }}", rows=ROWS * 3, params={"max_tokens": 8}, limits={"budget_nanousd": 100_000})
    async with lab.runner() as runner:
        created = await runner.create(spec)
        name = created.experiment_id
        first = await ended(runner, name)
        assert (first.state, first.reason) == (ExperimentState.CANCELLED, "BUDGET")
        assert 0 < first.cost_nanousd <= 100_000
        again = await runner.resume(name)
        assert again.generation == 2
        still = await ended(runner, name)
        assert (still.state, still.reason) == (ExperimentState.CANCELLED, "BUDGET")
        assert still.cost_nanousd == first.cost_nanousd
        await runner.update(name, ExperimentUpdate(budget_nanousd=100_000_000))
        await runner.resume(name)
        done = await ended(runner, name)
    assert (done.state, done.reason, done.counts.completed) == (ExperimentState.COMPLETED, "", 36)
    assert done.cost_remaining_nanousd == done.cost_reserved_nanousd == 0


async def test_an_experiment_whose_time_is_over_is_cancelled_and_can_be_resumed(lab: Lab) -> None:
    lab.model.go.clear()
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS, limits={"experiment_timeout": 0.3}))
        done = await ended(runner, created.experiment_id)
        assert (done.state, done.reason) == (ExperimentState.CANCELLED, "TIMEOUT")
        assert lab.model.running == 0
        lab.model.go.set()
        await runner.resume(created.experiment_id)
        done = await ended(runner, created.experiment_id)
        assert (done.state, done.reason, done.counts.completed) == (ExperimentState.COMPLETED, "", 12)


async def test_a_run_that_takes_longer_than_it_may_fails_also_over_several_stages_and_waits(lab: Lab) -> None:
    lab.model.say = lambda request: (
        ProviderRateLimited("slow down", retry_after=1.0, attempts=1)
        if request.messages[-1].content.startswith("wait")
        else "ok"
    )
    spec = experiment("go", "wait", limits={"run_timeout": 2.5, "stage_timeout": 600})
    done, (run,) = await lab.ran(spec)
    assert (done.state, run.state) == (ExperimentState.COMPLETED, RunState.FAILED)
    assert run.error is not None
    assert "run_timeout" in run.error.message
    assert len([s for s in run.stages if s.error is None]) == 1


async def test_a_runner_that_drains_lets_calls_end_and_hands_its_runs_to_another(lab: Lab) -> None:
    lab.model.say = echo
    lab.model.go.clear()
    async with lab.runner() as leaving:
        limits = {"max_concurrency": 4}
        created = await leaving.create(experiment(*TWO_STAGES, rows=ROWS, limits=limits, cache=ANEW))
        await calls_are(lab, 4)
        draining = asyncio.create_task(leaving.drain(60))
        await asyncio.sleep(0)
        lab.model.go.set()
        await draining
        assert sum(lab.model.calls.values()) == 4
        now = await leaving.get(created.experiment_id)
        assert (now.state, now.counts.running, now.counts.pending) == (ExperimentState.RUNNING, 0, 12)
        async with lab.runner() as other:
            done = await ended(other, created.experiment_id)
    assert done.counts.completed == 12
    assert set(lab.model.calls.values()) == {1}


@asynccontextmanager
async def two_runners(
    lab: Lab, **settings: Any
) -> AsyncIterator[tuple[RunnerCore, ScriptedModel, RunnerCore, ScriptedModel]]:
    """Each with a model of its own, that answers nothing before it is told to; `settings` are of the first."""
    lab.model = first = ScriptedModel(hold=True)
    async with lab.runner(**settings) as one:
        lab.model = second = ScriptedModel(hold=True)
        async with lab.runner() as two:
            yield one, first, two, second


async def test_runners_share_an_experiment_and_any_of_them_controls_it(lab: Lab) -> None:
    async with two_runners(lab) as (one, here, two, there):
        created = await one.create(experiment("{{ input.n }}", rows=ROWS, limits={"max_concurrency": 6}))
        name = created.experiment_id
        await eventually(lambda: (here.running, there.running) == (3, 3))
        mine = here.requests[0].messages[-1].content
        await two.cancel_run(f"{name}-{mine}")  # the other Runner's
        # No call was answered, so one that another could follow was stopped.
        await eventually(lambda: here.calls.total() + there.calls.total() == 7 and here.running + there.running == 6)
        assert (await two.get_run(f"{name}-{mine}")).state is RunState.CANCELLED
        here.go.set()
        there.go.set()
        done = await ended(two, name)
    assert (done.counts.completed, done.counts.cancelled) == (11, 1)
    assert max((here.calls + there.calls).values()) == 1


async def test_what_other_runners_leave_unused_is_taken_after_a_moment(lab: Lab) -> None:
    async with two_runners(lab, slots=1) as (small, here, _, there):
        await small.create(experiment("{{ input.n }}", rows=ROWS, limits={"max_concurrency": 6}))
        await eventually(lambda: (here.running, there.running) == (1, 5))


def is_worked_on(experiment_id: str) -> bool:
    """A Runner in this process has seen it, and shares its slots with it."""
    return any(experiment_id in task.get_name() for task in asyncio.all_tasks())


async def test_a_small_experiment_does_not_wait_for_a_large_one(lab: Lab) -> None:
    lab.model.go.clear()
    async with lab.runner(slots=4) as runner:
        large = await runner.create(experiment("large {{ input.n }}", rows=ROWS * 20, limits={"max_concurrency": 64}))
        await eventually(lambda: lab.model.running == 4)
        small = await runner.create(experiment("small"))
        await eventually(lambda: is_worked_on(small.experiment_id))
        let_those_end_that_run(lab)
        await eventually(lambda: (lab.model.calls.total(), lab.model.running) == (8, 4))
        assert lab.model.calls["small"] == 1, "it did not start with the next free slots"
        lab.model.go.set()
        done = await ended(runner, small.experiment_id)
        at_that_time = await runner.get(large.experiment_id)
        assert done.state is ExperimentState.COMPLETED
        assert at_that_time.counts.completed < at_that_time.counts.total
        with pytest.raises(ExperimentNotEnded):
            await runner.delete(large.experiment_id)
