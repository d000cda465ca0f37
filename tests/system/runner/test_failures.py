"""Lost commits, Runners that come and go, and watches over all of it, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from runner_lab import Lab, ended, experiment, exported, watched

from promptlooper.errors import ResumeTokenInvalid, StoreUnavailable
from promptlooper.experiments import WatchMessage
from promptlooper.run import RunState

ROWS = [{"n": n} for n in range(40)]


def every(count: int) -> Callable[[], None]:
    """A failpoint that breaks the connection each `count`-th time."""
    passed = 0

    def action() -> None:
        nonlocal passed
        passed += 1
        if passed % count == 0:
            raise StoreUnavailable("cut by a test")

    return action


def checked(messages: list[WatchMessage]) -> None:
    """A whole watch: one snapshot, events gapless after it, one terminal message at the end."""
    assert messages[0].snapshot is not None
    assert messages[-1].terminal is not None
    seqs = [message.event.event_seq for message in messages if message.event]
    start = messages[0].event_seq
    assert seqs == list(range(start + 1, messages[-1].event_seq + 1))
    assert sum(message.terminal is not None for message in messages) == 1


@pytest.mark.parametrize("place", ["turn_before", "turn_before_commit", "turn_after_commit"])
async def test_a_lost_commit_neither_loses_nor_repeats_a_call(lab: Lab, place: str) -> None:
    lab.failpoints.actions[place] = every(3)
    spec = experiment("a {{ input.n }}", "b {{ input.n }}", rows=ROWS, limits={"max_concurrency": 8})
    async with lab.runner() as runner:
        created = await runner.create(spec)
        messages = await watched(runner, created.experiment_id)
        runs = await exported(runner, created.experiment_id)
    checked(messages)
    assert {run.state for run in runs} == {RunState.COMPLETED}
    assert len(runs) == 40
    assert [len(run.stages) for run in runs] == [2] * 40
    assert max(lab.model.calls.values()) == 1
    assert messages[-1].terminal is not None
    assert messages[-1].terminal.tokens_out == sum(run.tokens_out for run in runs) == 40 * 2 * 4


async def test_a_runner_that_stops_hands_its_runs_back_and_the_next_goes_on_after_their_last_stage(lab: Lab) -> None:
    lab.model.go.clear()
    lab.model.say = lambda request: f"<{request.messages[-1].content}>"
    spec = experiment("a {{ input.n }}", "{{ prev_output }} b", rows=ROWS[:5])
    first_done = asyncio.Event()
    async with lab.runner() as runner:
        created = await runner.create(spec)
        lab.model.go.set()
        async for message in runner.watch(created.experiment_id):
            if message.event is not None and message.event.kind == "run.stage_completed":
                lab.model.go.clear()
                first_done.set()
                break
    stopped = sum(lab.model.calls.values())
    lab.model.go.set()
    async with lab.runner() as runner:
        await ended(runner, created.experiment_id)
        runs = await exported(runner, created.experiment_id)
    assert {run.state for run in runs} == {RunState.COMPLETED}
    assert [run.output for run in runs] == [f"<<a {n}> b>" for n in range(5)]
    assert [run.stages[0].messages[-1].content for run in runs] == [f"a {n}" for n in range(5)]
    assert stopped >= 1
    assert first_done.is_set()


async def test_a_watch_resumes_after_any_message_without_losing_or_repeating(lab: Lab) -> None:
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS[:10]))
        whole = await watched(runner, created.experiment_id)
        checked(whole)
        events = [message.event for message in whole if message.event]
        for cut in range(len(whole)):
            rest = await watched(runner, created.experiment_id, whole[cut].resume_token)
            seen = [message.event for message in whole[: cut + 1] if message.event]
            assert [*seen, *(message.event for message in rest if message.event)] == events
            assert rest[-1].terminal is not None


async def test_a_watch_of_some_kinds_gets_only_those_and_the_end(lab: Lab) -> None:
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS[:10]))
        messages = [m async for m in runner.watch(created.experiment_id, kinds=["run.completed"])]
        kinds = {message.event.kind for message in messages if message.event}
        assert kinds <= {"run.completed"}
        assert messages[-1].terminal is not None


async def test_a_wrong_resume_token_is_refused(lab: Lab) -> None:
    async with lab.runner() as runner:
        one = await runner.create(experiment("x"))
        other = await runner.create(experiment("y"))
        token = (await watched(runner, other.experiment_id))[-1].resume_token
        for wrong in ("nonsense", token):
            with pytest.raises(ResumeTokenInvalid):
                await watched(runner, one.experiment_id, wrong)


async def test_every_event_has_a_gapless_number_and_each_run_one_end(lab: Lab) -> None:
    async with lab.runner() as runner:
        created = await runner.create(experiment("a {{ input.n }}", "b {{ input.n }}", rows=ROWS))
        await ended(runner, created.experiment_id)
        from promptlooper.runner.events.watching import token_of

        messages = await watched(runner, created.experiment_id, token_of(created.experiment_id, 0))
    events = [message.event for message in messages if message.event]
    assert [event.event_seq for event in events] == list(range(1, len(events) + 1))
    kinds = [event.kind for event in events]
    assert (kinds[0], kinds[1], kinds[-1]) == ("experiment.created", "experiment.started", "experiment.completed")
    assert kinds.count("run.started") == kinds.count("run.completed") == 40
    assert kinds.count("run.stage_completed") == 80
