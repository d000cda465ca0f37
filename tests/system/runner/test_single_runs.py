"""StartRun and WatchRun: one run by itself, queued and followed, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from runner_lab import Lab, ended, experiment, exported, stage

from promptlooper.errors import (
    ExperimentNotFound,
    InvalidArgument,
    InvalidExperiment,
    RequestIdReused,
    ResumeTokenInvalid,
    RunNotFound,
)
from promptlooper.experiment import ModelEntry, Pipeline
from promptlooper.experiments import RunWatchMessage
from promptlooper.run import RunState
from promptlooper.runner.events.watching import token_of
from promptlooper.sources import ExperimentSource, RunTarget

ROWS = [{"n": 1}, {"n": 2}]


async def told(messages: AsyncIterator[RunWatchMessage]) -> list[RunWatchMessage]:
    return [message async for message in messages]


def kinds(messages: list[RunWatchMessage]) -> list[str]:
    return [message.event.kind for message in messages if message.event is not None]


async def test_a_run_is_started_by_itself_and_followed_to_its_end(lab: Lab) -> None:
    lab.model.go.clear()
    async with lab.runner() as runner:
        started = await runner.start_run(RunTarget(experiment(stage("{{ input.n }}", "a"), "{{ prev_output }}")), "one")
        assert started.run_id == f"{started.experiment.experiment_id}-0"
        assert started.experiment.counts.total == 1
        messages = runner.watch_run(started.run_id)
        first = await anext(messages)
        assert first.snapshot is not None
        lab.model.go.set()
        heard = [first, *await told(messages)]
        again = await runner.start_run(RunTarget(experiment(stage("{{ input.n }}", "a"), "{{ prev_output }}")), "one")
        with pytest.raises(RequestIdReused):
            await runner.start_run(RunTarget(experiment("other")), "one")
        run = await runner.get_run(started.run_id)
    assert again.run_id == started.run_id
    assert first.snapshot.state in (RunState.PENDING, RunState.RUNNING)
    assert [k for k in kinds(heard) if k != "run.started"] == ["run.stage_completed"] * 2 + ["run.completed"]
    assert heard[-1].terminal == run
    assert (run.state, run.output, len(run.stages)) == (RunState.COMPLETED, "fine", 2)


async def test_a_run_takes_its_pipeline_from_a_stored_experiment_and_a_new_row(lab: Lab) -> None:
    other = Pipeline("other", (stage("other {{ input.n }}"),), (ModelEntry("m", "mock/m"),))
    both = experiment("{{ input.n }}?", rows=ROWS)
    both = experiment("{{ input.n }}?", rows=ROWS, pipelines=(*both.pipelines, other))
    async with lab.runner() as runner:
        stored = await runner.create(both)
        await ended(runner, stored.experiment_id)
        runs = await exported(runner, stored.experiment_id)
        wanted = next(run for run in runs if run.pipeline == "other")
        row = {"n": 7, "expected": "seven", "_id": "mine"}
        with pytest.raises(InvalidArgument, match=r"several variants: set variant_id to one of .*direct · m"):
            await runner.start_run(RunTarget(stored.experiment_id, row=row, has_row=True))
        with pytest.raises(InvalidArgument, match="no variant 'none'"):
            await runner.start_run(RunTarget(stored.experiment_id, "none", row, True))
        with pytest.raises(InvalidArgument, match="has 2 inputs: set input_json"):
            await runner.start_run(RunTarget(stored.experiment_id, wanted.variant_id))
        with pytest.raises(InvalidArgument, match="'_wrong' is not a key"):
            await runner.start_run(RunTarget(stored.experiment_id, wanted.variant_id, {"_wrong": 1}, True))
        with pytest.raises(InvalidExperiment, match="no input row has"):
            await runner.start_run(RunTarget(stored.experiment_id, wanted.variant_id, {"m": 1}, True))
        started = await runner.start_run(RunTarget(stored.experiment_id, wanted.variant_id, row, True))
        last = (await told(runner.watch_run(started.run_id)))[-1].terminal
    assert last is not None
    assert (last.variant_id, last.input, last.expected, last.input_id) == (
        wanted.variant_id,
        {"n": 7},
        "seven",
        "mine",
    )
    assert last.stages[0].messages[0].content == "other 7"


async def test_a_run_of_a_source_is_started(lab: Lab) -> None:
    async with lab.runner() as runner:
        started = await runner.start_run(RunTarget(ExperimentSource("model: mock/m\nprompt: hi")))
        assert (await told(runner.watch_run(started.run_id)))[-1].terminal is not None


async def test_a_watch_of_a_run_goes_on_anywhere_and_hears_each_event_once(lab: Lab) -> None:
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", "{{ prev_output }}", rows=ROWS))
        await ended(runner, created.experiment_id)
        run_id = f"{created.experiment_id}-1"
        whole = await told(runner.watch_run(run_id))
        found = await runner.list_events(created.experiment_id)
        events = [event for event in found.events if event.run_index == 1]
        start = next(e for e in found.events if e.kind == "experiment.started")
        first_token = (await anext(runner.watch(created.experiment_id))).resume_token
        resumed = await told(runner.watch_run(run_id, token_of(created.experiment_id, start.event_seq)))
        assert [m.event for m in resumed[:-1]] == [e for e in events if e.event_seq > start.event_seq]
        for i, message in enumerate(resumed[:-1]):
            rest = await told(runner.watch_run(run_id, message.resume_token))
            assert rest == resumed[i + 1 :]
        assert [m.terminal is not None for m in await told(runner.watch_run(run_id, first_token))] == [True]
        with pytest.raises(ResumeTokenInvalid):
            await told(runner.watch_run(run_id, token_of(created.experiment_id, 10_000)))
    assert [whole[0].snapshot is not None, whole[1].terminal is not None, len(whole)] == [True, True, 2]


async def test_runs_that_are_not_there_and_never_will_be_are_not_found(lab: Lab) -> None:
    lab.model.go.clear()
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS, limits={"max_concurrency": 1}))
        for run_id in ("nothing-0", "nothing", f"{created.experiment_id}-2"):
            with pytest.raises((RunNotFound, ExperimentNotFound), match="there is no"):
                await told(runner.watch_run(run_id))
        messages = runner.watch_run(f"{created.experiment_id}-1")
        first = await anext(messages)
        assert first.snapshot is not None
        assert first.snapshot.state is RunState.PENDING
        await runner.cancel(created.experiment_id)
        with pytest.raises(RunNotFound):
            await told(messages)
