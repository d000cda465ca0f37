"""Budgets, cancelling, parking, idempotent creation, paging, deleting, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from runner_lab import Lab, ended, experiment, exported, stage, watched

from promptlooper.completion import CompletionRequest, ModelCheck, Price
from promptlooper.errors import (
    DeadlineExceeded,
    ExperimentNotEnded,
    ExperimentNotFound,
    InvalidArgument,
    PageTokenInvalid,
    ProviderRateLimited,
    RequestIdReused,
    RunNotFound,
    ServiceUnavailable,
)
from promptlooper.experiment import ExperimentState, Gate, ModelEntry, Pipeline, ScorerSpec
from promptlooper.experiments import ExperimentFilter
from promptlooper.run import RunState

ROWS = [{"n": n} for n in range(200)]
CENT = 10_000_000  # nano-USD


async def test_a_budget_of_a_cent_on_a_priced_model_is_never_overshot(lab: Lab) -> None:
    lab.model.price = Price(1_000_000_000, 4_000_000_000)  # a micro-dollar a token in, four out
    lab.model.say = lambda request: "x" * (1 + len(request.messages[-1].content) % 50)
    spec = experiment(
        "tell me about number {{ input.n }}",
        "and more of {{ prev_output }}",
        rows=ROWS,
        params={"max_tokens": 50},
        limits={"budget_nanousd": CENT},
    )
    done, runs = await lab.ran(spec)
    assert (done.state, done.reason) == (ExperimentState.CANCELLED, "BUDGET")
    assert 0 < done.cost_nanousd <= CENT
    assert done.cost_nanousd == sum(run.cost_nanousd or 0 for run in runs)
    assert done.counts.completed > 10
    assert done.counts.completed + done.counts.cancelled == done.counts.total == 200
    assert done.counts.running == done.counts.pending == 0


async def test_a_token_budget_is_never_overshot(lab: Lab) -> None:
    spec = experiment("{{ input.n }}", rows=ROWS, params={"max_tokens": 8}, limits={"budget_tokens": 900})
    done, _ = await lab.ran(spec)
    assert (done.state, done.reason) == (ExperimentState.CANCELLED, "BUDGET")
    assert 0 < done.tokens_in + done.tokens_out <= 900


async def test_a_budget_that_is_enough_changes_nothing(lab: Lab) -> None:
    lab.model.price = Price(1_000_000, 1_000_000)
    spec = experiment("{{ input.n }}", rows=ROWS[:20], params={"max_tokens": 8}, limits={"budget_nanousd": CENT})
    done, _ = await lab.ran(spec)
    assert (done.state, done.counts.completed) == (ExperimentState.COMPLETED, 20)


async def test_a_cancelled_experiment_stops_calling_the_model_and_says_what_ran(lab: Lab) -> None:
    lab.model.go.clear()
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS, limits={"max_concurrency": 10}))
        await lab.model.called.wait()
        await runner.cancel(created.experiment_id)
        done = await ended(runner, created.experiment_id)
        runs = await exported(runner, created.experiment_id)
        calls = sum(lab.model.calls.values())
        assert (done.state, done.reason) == (ExperimentState.CANCELLED, "USER")
        assert (done.counts.cancelled, done.counts.running, done.counts.pending) == (200, 0, 0)
        assert {run.state for run in runs} == {RunState.CANCELLED}
        assert len(runs) == calls == 10
        assert lab.model.running == 0
        again = await runner.cancel(created.experiment_id)
        assert (again.state, again.event_seq) == (done.state, done.event_seq)


async def test_one_run_can_be_cancelled_and_the_others_go_on(lab: Lab) -> None:
    lab.model.go.clear()
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS[:3]))
        await lab.model.called.wait()
        await runner.cancel_run(f"{created.experiment_id}-1")
        lab.model.go.set()
        done = await ended(runner, created.experiment_id)
        runs = await exported(runner, created.experiment_id)
    assert [run.state for run in runs] == [RunState.COMPLETED, RunState.CANCELLED, RunState.COMPLETED]
    assert (done.state, done.counts.cancelled) == (ExperimentState.COMPLETED, 1)


async def test_a_run_that_must_wait_is_parked_and_completes_later(lab: Lab) -> None:
    refused: set[str] = set()

    def say(request: object) -> str | Exception:
        text = request.messages[-1].content  # type: ignore[attr-defined]
        if text == "1" and text not in refused:
            refused.add(text)
            return ProviderRateLimited("slow down", retry_after=0.2, attempts=1)
        return "fine"

    lab.model.say = say
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS[:3]))
        messages = await watched(runner, created.experiment_id)
        kinds = [message.event.kind for message in messages if message.event]
        assert kinds.count("run.waiting") == 1
        assert (await runner.get(created.experiment_id)).counts.completed == 3


async def test_a_run_that_waits_for_others_does_not_lose_its_stages_time_and_says_what_it_waits_for(lab: Lab) -> None:
    held = ProviderRateLimited("not asked", retry_after=1.0, waits_for="rate")
    answers: list[str | Exception] = [held, "fine"]
    lab.model.say = lambda request: answers.pop(0)
    async with lab.runner() as runner:
        created = await runner.create(experiment("hi", limits={"stage_timeout": 0.5}))
        messages = await watched(runner, created.experiment_id)
        (waiting,) = [m.event for m in messages if m.event and m.event.kind == "run.waiting"]
        assert waiting.detail["error_message"] == "the requests or tokens of this minute are used up"
        assert (await runner.get(created.experiment_id)).counts.completed == 1


async def test_a_limit_does_not_have_all_runs_started_and_parked(lab: Lab) -> None:
    lab.model.say = lambda request: ProviderRateLimited("not asked", retry_after=600.0, waits_for="rate")
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS * 5, limits={"max_concurrency": 1}))
        waiting = 0
        async for message in runner.watch(created.experiment_id):
            waiting += message.event is not None and message.event.kind == "run.waiting"
            if waiting == 4:
                break
        known = await runner.get(created.experiment_id)
        assert known.counts.pending == len(ROWS) * 5
        assert len(await exported(runner, created.experiment_id)) == 4
        await runner.cancel(created.experiment_id)


async def test_100_concurrent_creates_with_one_request_id_make_one_experiment(lab: Lab) -> None:
    spec = experiment("{{ input.n }}", rows=ROWS[:3])
    async with lab.runner() as runner:
        made = await asyncio.gather(*(runner.create(spec, "request-1") for _ in range(100)))
        assert len({created.experiment_id for created in made}) == 1
        assert len((await runner.list_experiments(ExperimentFilter())).experiments) == 1
        with pytest.raises(RequestIdReused):
            await runner.create(replace(spec, name="other"), "request-1")
        with pytest.raises(InvalidArgument):
            await runner.create(spec, "no spaces")
        assert (await runner.create(spec)).experiment_id != made[0].experiment_id


async def test_experiments_are_listed_newest_first_a_page_at_a_time(lab: Lab) -> None:
    async with lab.runner() as runner:
        made = []
        for n in range(5):
            spec = experiment("x", name=f"e{n}", tags=("odd",) if n % 2 else (), metadata={"n": str(n)})
            made.append((await runner.create(spec)).experiment_id)
        first = await runner.list_experiments(ExperimentFilter(), page_size=2)
        second = await runner.list_experiments(ExperimentFilter(), page_size=2, page_token=first.next_page_token)
        third = await runner.list_experiments(ExperimentFilter(), page_size=2, page_token=second.next_page_token)
        pages = [*first.experiments, *second.experiments, *third.experiments]
        assert [e.experiment_id for e in pages] == made[::-1]
        assert third.next_page_token == ""
        odd = await runner.list_experiments(ExperimentFilter(tags=("odd",)))
        assert [e.name for e in odd.experiments] == ["e3", "e1"]
        third_made = await runner.list_experiments(ExperimentFilter(metadata={"n": "3"}))
        assert [e.name for e in third_made.experiments] == ["e3"]
        prefix = await runner.list_experiments(ExperimentFilter(experiment_id_prefix=made[2][:8]))
        assert [e.name for e in prefix.experiments] == ["e2"]
        with pytest.raises(PageTokenInvalid):
            await runner.list_experiments(ExperimentFilter(project="p"), page_token=first.next_page_token)
        with pytest.raises(PageTokenInvalid):
            await runner.list_experiments(ExperimentFilter(), page_token="nonsense")


async def test_runs_are_listed_and_exported_in_order_from_anywhere(lab: Lab) -> None:
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS))
        await ended(runner, created.experiment_id)
        token, listed = "", []
        while True:
            page = await runner.list_runs(created.experiment_id, 70, token)
            listed += page.runs
            token = page.next_page_token
            if not token:
                break
        assert [run.run_index for run in listed] == list(range(200))
        assert listed[0].stages == ()
        tail = [run.run_index async for run in runner.export(created.experiment_id, 150)]
        assert tail == list(range(150, 200))
        one = await runner.get_run(f"{created.experiment_id}-7")
        assert (one.input, one.output) == ({"n": 7}, "fine")
        with pytest.raises(RunNotFound):
            await runner.get_run(f"{created.experiment_id}-200")


async def test_an_experiment_is_deleted_only_after_its_end_and_then_it_is_gone(lab: Lab) -> None:
    lab.model.go.clear()
    async with lab.runner() as runner:
        created = await runner.create(experiment("x"))
        with pytest.raises(ExperimentNotEnded):
            await runner.delete(created.experiment_id)
        lab.model.go.set()
        await ended(runner, created.experiment_id)
        await runner.delete(created.experiment_id)
        for call in (runner.get, runner.cancel, runner.pause, runner.resume, runner.retry, runner.summarize):
            with pytest.raises(ExperimentNotFound):
                await call(created.experiment_id)
        await runner.delete(created.experiment_id)  # again: its first answer may have been lost
        with pytest.raises(ExperimentNotFound):
            await runner.delete("never-there")


async def test_a_summary_compares_variants_and_judges_gates(lab: Lab) -> None:
    lab.model.say = lambda request: (
        ProviderRateLimited("no", attempts=1) if "13" in request.messages[-1].content else "7"
    )
    scorers = (ScorerSpec("seven", "contains", "{{ input.n }}", threshold=1),)
    gates = (Gate({"seven": 0.5}, 0), Gate({"seven": 0.01}, 5))
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS[:20], scorers=scorers, gates=gates))
        await ended(runner, created.experiment_id)
        summary = await runner.summarize(created.experiment_id)
    (variant,) = summary.variants
    assert (variant.runs, variant.failed, variant.scores[0].n) == (20, 1, 19)
    assert variant.scores[0].mean == variant.score == pytest.approx(1 / 19)
    assert variant.pass_rate == pytest.approx(1 / 20)
    assert (variant.latency_ms_p50, variant.latency_ms_p95) == (5, 5)
    assert [(g.name, g.passed) for g in summary.gates] == [
        ("min_scores.seven", False),
        ("max_failed_runs", False),
        ("min_scores.seven", True),
        ("max_failed_runs", True),
    ]


async def test_waiting_for_a_provider_ends_with_the_stages_time(lab: Lab) -> None:
    lab.model.say = lambda request: ProviderRateLimited("slow down", retry_after=0.1, attempts=1)
    spec = experiment("x", limits={"stage_timeout": 2.5})
    done, (run,) = await lab.ran(spec)
    assert (done.state, run.state) == (ExperimentState.COMPLETED, RunState.FAILED)
    assert run.error is not None
    assert run.error.reason == "PROVIDER_RATE_LIMITED"
    assert "stage_timeout" in run.error.message
    assert run.attempts == sum(lab.model.calls.values()) >= 2


async def test_a_run_cancelled_between_two_stages_does_not_begin_the_second(lab: Lab) -> None:
    async with lab.runner() as runner:

        def say(request: object) -> str:
            loop = runner._engine._loops[created.experiment_id]
            asyncio.get_running_loop().call_later(0.001, loop.cancel_run, 0)  # the checkpoint is not stored yet
            return "one"

        lab.model.say = say
        lab.model.go.clear()
        created = await runner.create(experiment("a", "b {{ prev_output }}"))
        await lab.model.called.wait()
        lab.model.go.set()
        await ended(runner, created.experiment_id)
        (run,) = await exported(runner, created.experiment_id)
    assert run.state is RunState.CANCELLED
    assert lab.model.calls["b one"] == 0


async def test_calls_that_may_be_billed_though_they_failed_count_against_the_budget(lab: Lab) -> None:
    lab.model.price = Price(1_000_000_000, 1_000_000_000)
    lab.model.say = lambda request: DeadlineExceeded("late", attempts=1)
    spec = experiment("{{ input.n }}", rows=ROWS, params={"max_tokens": 10}, limits={"budget_nanousd": CENT // 10})
    done, _ = await lab.ran(spec)
    assert (done.state, done.reason) == (ExperimentState.CANCELLED, "BUDGET")
    assert sum(lab.model.calls.values()) * 10_000 <= CENT // 10
    assert (done.cost_nanousd, done.cost_unknown_calls) == (0, 0)
    assert 0 < done.cost_uncertain_nanousd <= CENT // 10  # nobody knows what they cost


async def test_one_run_that_can_not_be_paid_does_not_keep_the_others_from_running(lab: Lab) -> None:
    lab.model.price = Price(1_000_000_000, 1_000_000_000)
    rows = [{"t": "x" * (50_000 if n == 3 else 1)} for n in range(20)]
    spec = experiment("{{ input.t }}", rows=rows, params={"max_tokens": 10}, limits={"budget_nanousd": CENT})
    done, runs = await lab.ran(spec)
    assert (done.state, done.reason, done.counts.completed) == (ExperimentState.CANCELLED, "BUDGET", 19)
    assert runs[3].state is RunState.CANCELLED


async def test_a_dear_model_does_not_keep_a_cheap_one_from_running(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it comes first in the grid."""
    prices = {"mock/dear": Price(10**12, 10**12), "mock/cheap": Price(10**9, 10**9)}

    async def check_models(models: Sequence[str]) -> list[ModelCheck]:
        return [ModelCheck(model, price=prices[model]) for model in models]

    monkeypatch.setattr(lab.model, "check_models", check_models)
    lab.model.price = prices["mock/cheap"]
    models = (ModelEntry("dear", "mock/dear"), ModelEntry("cheap", "mock/cheap"))
    pipelines = (Pipeline("direct", (stage("{{ input.n }}"),), models),)
    limits = {"budget_nanousd": CENT}
    done, runs = await lab.ran(
        experiment(rows=ROWS[:10], pipelines=pipelines, params={"max_tokens": 10}, limits=limits)
    )
    assert (done.state, done.reason) == (ExperimentState.CANCELLED, "BUDGET")
    completed = [run.model for run in runs if run.state is RunState.COMPLETED]
    assert completed == ["cheap"] * 10
    assert sum(lab.model.calls.values()) == 10


async def test_a_call_whose_answer_was_lost_is_repeated_and_never_beyond_the_budget(lab: Lab) -> None:
    """The provider bills each call, also those whose answer an Adapter took with it when it died."""
    lab.model.price = Price(1_000_000_000, 1_000_000_000)
    billed = 0

    def say(request: CompletionRequest) -> str | Exception:
        nonlocal billed
        billed += (len(request.messages[-1].content) + 4) * 1_000
        if sum(lab.model.calls.values()) % 3:
            return ServiceUnavailable("the Adapter died", sent=True)
        return "fine"

    lab.model.say = say
    limits = {"budget_nanousd": CENT // 10, "max_concurrency": 4}
    done, _ = await lab.ran(experiment("{{ input.n }}", rows=ROWS, params={"max_tokens": 10}, limits=limits))
    assert (done.state, done.reason) == (ExperimentState.CANCELLED, "BUDGET")
    assert done.counts.completed > 0
    assert done.counts.failed == 0
    assert done.cost_nanousd < billed <= CENT // 10
    assert billed <= done.cost_nanousd + done.cost_uncertain_nanousd <= CENT // 10


async def test_a_question_that_never_reached_an_adapter_is_repeated_for_nothing(lab: Lab) -> None:
    lab.model.price = Price(1_000_000_000, 1_000_000_000)
    lab.model.say = lambda request: ServiceUnavailable("no Adapter") if sum(lab.model.calls.values()) < 3 else "fine"
    limits = {"budget_nanousd": CENT}
    done, _ = await lab.ran(experiment("{{ input.n }}", rows=ROWS[:1], params={"max_tokens": 10}, limits=limits))
    assert (done.state, done.cost_uncertain_nanousd) == (ExperimentState.COMPLETED, 0)
