"""Lost commits, Runners that come and go, and watches over all of it, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from runner_lab import Lab, ended, experiment, exported, watched

from promptlooper.completion import Completion, CompletionRequest, Message, ModelCheck
from promptlooper.errors import (
    ExperimentNotFound,
    ProviderRateLimited,
    ProviderRejected,
    ResumeTokenInvalid,
    StoreUnavailable,
)
from promptlooper.experiment import CacheMode, CachePolicy, ExperimentState, ScorerSpec
from promptlooper.experiments import WatchMessage
from promptlooper.failpoints import Failpoints
from promptlooper.run import RunState, StageResult
from promptlooper.runner.engine import Engine
from promptlooper.runner.events.watching import token_of
from promptlooper.runner.outcomes import RunFacts, StageDone
from promptlooper.runner.store import control, leases, repository
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.models import runners
from promptlooper.runner.store.turns import TurnRequest, turn
from promptlooper.testing.eventually import eventually

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
        messages = await watched(runner, created.experiment_id, token_of(created.experiment_id, 0))
    events = [message.event for message in messages if message.event]
    assert [event.event_seq for event in events] == list(range(1, len(events) + 1))
    kinds = [event.kind for event in events]
    assert (kinds[0], kinds[1], kinds[-1]) == ("experiment.created", "experiment.started", "experiment.completed")
    assert kinds.count("run.started") == kinds.count("run.completed") == 40
    assert kinds.count("run.stage_completed") == 80


async def test_the_runs_of_a_dead_runner_are_taken_back_and_complete(lab: Lab) -> None:
    """A Runner that claimed runs, stored a stage of one, and died: its lease has run out."""
    async with lab.runner(slots=0) as idle:  # creates it and does not work on it
        created = await idle.create(experiment("a {{ input.n }}", "b {{ prev_output }}", rows=ROWS[:4]))
    database = Database(lab.database_url)
    try:
        await database.write(partial(leases.register_runner, runner_id="dead", ttl=-1))
        claim = TurnRequest(created.experiment_id, "dead", (), 3, ("v",), 1)
        claimed = await database.write(partial(turn, request=claim, now_us=1, failpoints=Failpoints()))
        assert [c.run_index for c in claimed.claims] == [0, 1, 2]
        stored = StageDone(0, 1, RunFacts("v", "i", 0), 0, a_result("from the dead"), last=False)
        await database.write(
            partial(turn, request=replace(claim, outcomes=[stored], slots=0), now_us=2, failpoints=Failpoints())
        )
    finally:
        database.close()
    async with lab.runner(lease_ttl=0.3) as runner:
        await ended(runner, created.experiment_id)
        runs = await exported(runner, created.experiment_id)
        events = [m.event for m in await watched(runner, created.experiment_id, token_of(created.experiment_id, 0))]
    assert {run.state for run in runs} == {RunState.COMPLETED}
    assert runs[0].stages[0].output == "from the dead"
    assert lab.model.calls["a 0"] == 0
    assert lab.model.calls["b from the dead"] == 1
    assert [e.event_seq for e in events if e] == list(range(1, len([e for e in events if e]) + 1))


async def test_a_runner_whose_lease_is_gone_registers_anew_and_the_work_completes(lab: Lab) -> None:
    lab.model.go.clear()
    async with lab.runner(lease_ttl=0.3) as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS[:4]))
        await lab.model.called.wait()
        database = Database(lab.database_url)
        try:
            await database.write(lambda c: c.execute(sa.update(runners).values(dead=True)))
        finally:
            database.close()
        lab.model.go.set()
        done = await ended(runner, created.experiment_id)
        runs = await exported(runner, created.experiment_id)
    assert done.counts.completed == 4
    assert {run.state for run in runs} == {RunState.COMPLETED}


@pytest.mark.parametrize("text", ["nul \x00 inside", "lone \ud800 surrogate", "plain"])
async def test_an_odd_answer_is_stored_and_hurts_no_other_run(lab: Lab, text: str) -> None:
    lab.model.say = lambda request: text if request.messages[-1].content == "1" else "fine"
    done, runs = await lab.ran(experiment("{{ input.n }}", rows=ROWS[:5]))
    assert done.counts.completed == 5
    assert runs[1].output is not None
    assert runs[1].output.startswith(text[:4])


async def test_a_result_that_can_not_be_stored_fails_its_run_only(lab: Lab) -> None:
    def say(request: object) -> str | Completion:
        odd = request.messages[-1].content == "1"  # type: ignore[attr-defined]
        return Completion("big", "m", "stop", 2**63 + 1, 1) if odd else "fine"

    lab.model.say = say
    done, runs = await lab.ran(experiment("{{ input.n }}", rows=ROWS[:5], limits={"max_concurrency": 5}))
    assert done.state is ExperimentState.COMPLETED
    assert [run.state for run in runs].count(RunState.COMPLETED) == 4
    assert runs[1].state is RunState.FAILED
    assert runs[1].error is not None
    assert "could not be stored" in runs[1].error.message


async def test_events_and_logs_hold_no_prompt_input_or_output(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    canary = "XcanaryX"

    def say(request: object) -> str | Exception:
        text = request.messages[-1].content  # type: ignore[attr-defined]
        return ProviderRejected(f"I refuse {text}", attempts=1) if text.endswith("2") else text

    lab.model.say = say
    rows = [{"n": n, "t": canary} for n in range(3)] + [{"n": 3, "other": canary}]
    scorers = (ScorerSpec("s", "contains", "{{ input.t }}"),)
    async with lab.runner() as runner:
        created = await runner.create(
            experiment("{{ input[input.t] if input.n == 1 else input.t ~ input.n }}", rows=rows, scorers=scorers)
        )
        await ended(runner, created.experiment_id)
        messages = await watched(runner, created.experiment_id, token_of(created.experiment_id, 0))
    text = repr([message.event for message in messages])
    assert "run.failed" in text
    assert canary not in text
    assert canary not in caplog.text


async def test_a_watcher_of_a_deleted_experiment_hears_that_it_is_gone(lab: Lab) -> None:
    async with lab.runner() as runner:
        created = await runner.create(experiment("x"))
        await ended(runner, created.experiment_id)
        await runner.delete(created.experiment_id)
        with pytest.raises(ExperimentNotFound):
            await watched(runner, created.experiment_id)


@pytest.mark.parametrize("place", ["turn_before_commit", "turn_after_commit"])
async def test_calls_that_end_while_a_lost_commit_is_looked_into_are_not_made_again(lab: Lab, place: str) -> None:
    """Without the cache, which would hide a second call, and with answers that come at any time."""
    lab.failpoints.actions[place] = every(2)
    lab.model.say = lambda request: f"<{request.messages[-1].content}>"
    spec = experiment(
        "a {{ input.n }}",
        "{{ prev_output }} b",
        "{{ prev_output }} c",
        rows=ROWS,
        limits={"max_concurrency": 16},
        cache=CachePolicy(CacheMode.OFF),
    )
    _, runs = await lab.ran(spec)
    assert [run.output for run in runs] == [f"<<<a {n}> b> c>" for n in range(40)]
    assert max(lab.model.calls.values()) == 1


async def test_stopping_in_the_middle_of_a_burst_hands_every_run_back(lab: Lab) -> None:
    lab.model.go.clear()
    many = [{"n": n} for n in range(300)]
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=many, limits={"max_concurrency": 300}))
        await lab.model.called.wait()
    lab.model.go.set()
    async with lab.runner() as runner:
        done = await ended(runner, created.experiment_id)
    assert (done.state, done.counts.completed) == (ExperimentState.COMPLETED, 300)


async def test_an_outage_while_inputs_are_read_costs_time_only(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    read, failures = repository.input_chunk, [StoreUnavailable("cut by a test")] * 2

    def flaky(*args: object, **kwargs: object) -> object:
        if failures:
            raise failures.pop()
        return read(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(repository, "input_chunk", flaky)
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS[:3]))
        assert (await ended(runner, created.experiment_id)).counts.completed == 3


async def test_a_process_that_lost_its_lease_goes_on_with_its_own_experiments(lab: Lab) -> None:
    lab.model.go.clear()
    async with lab.runner(lease_ttl=0.3, own_only=True) as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS[:4]))
        await lab.model.called.wait()
        database = Database(lab.database_url)
        try:
            await database.write(lambda c: c.execute(sa.update(runners).values(dead=True)))
        finally:
            database.close()
        lab.model.go.set()
        assert (await ended(runner, created.experiment_id)).counts.completed == 4


async def test_an_experiment_that_can_not_run_is_failed_also_in_an_outage(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail, failures = control.fail, [StoreUnavailable("cut by a test")] * 2

    def flaky(*args: Any, **kwargs: Any) -> None:
        if failures:
            raise failures.pop()
        fail(*args, **kwargs)

    checked: list[Sequence[str]] = []

    async def check_models(models: Sequence[str]) -> list[ModelCheck]:
        checked.append(models)
        if len(checked) > 1:  # the first time it is created
            raise RuntimeError("a fault of ours")
        return [ModelCheck(model) for model in models]

    monkeypatch.setattr(control, "fail", flaky)
    monkeypatch.setattr(lab.model, "check_models", check_models)
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS[:3]))
        assert (await ended(runner, created.experiment_id)).state is ExperimentState.FAILED
    assert not failures


async def test_a_runner_renews_its_lease_while_it_takes_runs_back(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead Runner may have left more than can be taken back within a lease."""
    taking, renewed = asyncio.Event(), 0

    async def take_for_ever(engine: Engine) -> None:
        taking.set()
        await asyncio.Event().wait()

    def count() -> None:
        nonlocal renewed
        renewed += taking.is_set()

    monkeypatch.setattr(Engine, "_take_from_the_dead", take_for_ever)
    lab.failpoints.actions["lease_before_renew"] = count
    async with lab.runner(lease_ttl=0.3, replica="runner-0") as runner:
        await eventually(lambda: renewed >= 5)
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS[:3]))
        assert (await ended(runner, created.experiment_id)).counts.completed == 3


async def test_a_run_that_was_parked_is_not_told_as_cached(lab: Lab) -> None:
    """It made a call: rows, events and counts say the same."""
    refused = asyncio.Event()

    def say(request: CompletionRequest) -> str | Exception:
        if not refused.is_set():
            refused.set()
            return ProviderRateLimited("later", attempts=1, retry_after=1.0)
        return "fine"

    lab.model.say = say
    spec = experiment("{{ input.n }}", rows=ROWS[:1], cache=CachePolicy(CacheMode.READ_WRITE))
    async with lab.runner() as runner:
        parked = await runner.create(spec)
        await refused.wait()
        other = await runner.create(replace(spec, name="asks the same meanwhile"))
        await ended(runner, other.experiment_id)
        done = await ended(runner, parked.experiment_id)
        (run,) = await exported(runner, parked.experiment_id)
        events = [m.event for m in await watched(runner, parked.experiment_id, token_of(parked.experiment_id, 0))]
    assert lab.model.calls.total() == 2
    assert (run.stages[0].cached, run.cached, done.counts.cached) == (True, False, 0)
    assert [e.detail["cached"] for e in events if e and e.kind == "run.completed"] == [False]


def a_result(output: str) -> StageResult:
    messages = (Message("user", "a 0"),)
    return StageResult(0, "", messages, output, "m", "mock/m", {}, 1, 1, None, None, 1, None, 5, 0, False, 1, "stop")
