"""ExecuteRun: one run in its caller's time, with deltas, deadline, cancellation and nothing stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from runner_lab import Lab, ScriptedModel, ended, experiment, stage

from promptlooper.completion import Completion, CompletionRequest, Price
from promptlooper.errors import (
    DeadlineExceeded,
    Draining,
    InvalidArgument,
    InvalidExperiment,
    ProviderRateLimited,
    ProviderRejected,
    ServiceUnavailable,
)
from promptlooper.experiment import CacheMode, CachePolicy, ScorerSpec
from promptlooper.experiments import Execution, ExperimentFilter
from promptlooper.run import Run, RunState
from promptlooper.runner.counts import RunnerCounts
from promptlooper.runner.events.hub import Hub
from promptlooper.sources import ExperimentSource, RunTarget
from promptlooper.testing.eventually import eventually

UNCACHED = CachePolicy(CacheMode.OFF)


@pytest.fixture
def database_url(tmp_path: object) -> str:
    return f"sqlite:///{tmp_path}/promptlooper.db"


async def heard(messages: AsyncIterator[Execution]) -> tuple[list[tuple[int, str]], list[Execution], Run]:
    """Deltas, stages, and the run."""
    found = [message async for message in messages]
    assert found[-1].run is not None
    deltas = [(message.delta.stage_index, message.delta.text) for message in found if message.delta is not None]
    return deltas, [message for message in found if message.stage is not None], found[-1].run


async def test_a_run_tells_its_outputs_as_they_come_and_is_not_stored(lab: Lab) -> None:
    lab.model.say = lambda request: f"so {request.messages[-1].content}"
    spec = experiment(
        stage("{{ input.n }}", "first"),
        "{{ prev_output }}!",
        rows=[{"n": 3}],
        scorers=(ScorerSpec("contains", "contains", "so"),),
        cache=UNCACHED,
    )
    async with lab.runner() as runner:
        deltas, stages, run = await heard(runner.execute_run(RunTarget(spec)))
        assert deltas == [(0, "so3"), (1, "soso3!")]  # each output's pieces were ready together
        assert [message.stage.output for message in stages if message.stage] == ["so 3", "so so 3!"]
        assert (run.state, run.output, run.score, run.run_id) == (RunState.COMPLETED, "so so 3!", 1.0, "")
        assert [score.name for score in run.scores] == ["contains"]
        assert run.tokens_out == sum(message.stage.tokens_out or 0 for message in stages if message.stage)
        assert (await runner.list_experiments(ExperimentFilter())).experiments == ()


async def test_totals_are_those_of_the_same_run_when_queued(lab: Lab) -> None:
    lab.model.price = Price(1_000_000_000, 2_000_000_000)
    spec = experiment("{{ input.n }}", "{{ prev_output }}", params={"max_tokens": 9}, cache=UNCACHED)
    async with lab.runner() as runner:
        _, _, executed = await heard(runner.execute_run(RunTarget(spec)))
        started = await runner.start_run(RunTarget(spec))
        await ended(runner, started.experiment.experiment_id)
        queued = await runner.get_run(started.run_id)
    same = ("run_id", "experiment_id", "generation", "duration_ms", "created_at", "started_at", "completed_at")
    assert replace(executed, **{name: getattr(queued, name) for name in same}) == queued


async def test_what_the_cache_has_comes_in_one_piece_and_costs_nothing(lab: Lab) -> None:
    lab.model.say = lambda request: "a b"
    async with lab.runner() as runner:
        target = RunTarget(experiment("{{ input.n }}"))
        first = await heard(runner.execute_run(target))
        again = await heard(runner.execute_run(target))
    assert (first[0], again[0]) == ([(0, "ab")], [(0, "a b")])
    assert (first[2].cached, again[2].cached) == (False, True)
    assert lab.model.calls.total() == 1


async def test_a_stored_experiment_runs_on_a_new_row_and_is_checked_once_a_minute(lab: Lab) -> None:
    async with lab.runner() as runner:
        stored = await runner.create(experiment("{{ input.n }}?", rows=[{"n": 1}, {"n": 2}]))
        await ended(runner, stored.experiment_id)
        for n in (7, 8):
            _, _, run = await heard(runner.execute_run(RunTarget(stored.experiment_id, row={"n": n}, has_row=True)))
            assert run.stages[0].messages[0].content == f"{n}?"
        _, _, failed = await heard(runner.execute_run(RunTarget(stored.experiment_id, row={"m": 1}, has_row=True)))
        assert failed.error is not None
        assert (failed.state, failed.error.reason) == (RunState.FAILED, "TEMPLATE_ERROR")
        with pytest.raises(InvalidArgument, match="has 2 inputs"):
            await heard(runner.execute_run(RunTarget(stored.experiment_id)))
        with pytest.raises(InvalidExperiment, match="prompt"):
            await heard(runner.execute_run(RunTarget(ExperimentSource("model: mock/m"))))
        _, _, run = await heard(runner.execute_run(RunTarget(ExperimentSource("model: mock/m\nprompt: hi"))))
        assert run.output == "fine"


async def test_failures_are_the_runs_own_and_keep_the_finished_stages(lab: Lab) -> None:
    def say(request: CompletionRequest) -> str | Exception:
        return ProviderRejected("no", attempts=2) if "fine" in request.messages[-1].content else "fine"

    lab.model.say = say
    async with lab.runner() as runner:
        _, stages, run = await heard(runner.execute_run(RunTarget(experiment("{{ input.n }}", "{{ prev_output }}"))))
    assert len(stages) == 1
    assert run.error is not None
    assert (run.state, run.error.reason, run.error.stage_index) == (RunState.FAILED, "PROVIDER_REJECTED", 1)
    assert (run.attempts, run.output, len(run.stages)) == (3, None, 2)


@pytest.mark.parametrize(
    ("waits_for", "said"),
    [({}, "the provider asks to wait"), ({"waits_for": "rate"}, "the requests or tokens of this minute are used up")],
)
async def test_it_never_waits_for_long_and_says_for_what(lab: Lab, waits_for: dict[str, str], said: str) -> None:
    lab.model.say = lambda request: ProviderRateLimited("slow down", attempts=1, retry_after=30.0, **waits_for)
    async with lab.runner() as runner:
        _, _, run = await heard(runner.execute_run(RunTarget(experiment("{{ input.n }}"))))
    assert run.error is not None
    assert (run.error.reason, run.error.retryable) == ("PROVIDER_RATE_LIMITED", True)
    assert run.error.message.startswith(f"{said}: ask again in ")
    assert run.error.message.endswith(", or queue it with StartRun")


async def test_a_budget_holds(lab: Lab) -> None:
    lab.model.price = Price(1_000_000_000, 1_000_000_000)
    lab.model.say = lambda request: "x" * 40
    spec = experiment("{{ input.n }}", "{{ prev_output }}", params={"max_tokens": 50}, cache=UNCACHED)
    tight = replace(spec, limits=replace(spec.limits, budget_nanousd=130_000))
    async with lab.runner() as runner:
        _, stages, run = await heard(runner.execute_run(RunTarget(tight)))
    assert run.error is not None
    assert (run.error.reason, len(stages)) == ("BUDGET_EXCEEDED", 1)
    assert run.cost_nanousd is not None
    assert run.cost_nanousd <= 130_000


async def test_the_callers_deadline_reaches_the_provider(lab: Lab) -> None:
    async with lab.runner() as runner:
        await heard(runner.execute_run(RunTarget(experiment("{{ input.n }}", cache=UNCACHED)), 2.5))
        assert 0 < lab.model.requests[0].timeout <= 2.5
        await heard(runner.execute_run(RunTarget(experiment("{{ input.n }}", cache=UNCACHED))))
        assert lab.model.requests[1].timeout > 2.5


class Slow(ScriptedModel):
    """Says one piece, and then nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped = asyncio.Event()

    async def complete(self, request: CompletionRequest, on_delta: object = None) -> Completion:
        assert callable(on_delta)
        on_delta("well")
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.set()
        raise AssertionError


class Late(ScriptedModel):
    """Gives no answer in the time that it has."""

    async def complete(self, request: CompletionRequest, on_delta: object = None) -> Completion:
        try:
            async with asyncio.timeout(request.timeout):
                await asyncio.Event().wait()
        except TimeoutError:
            raise DeadlineExceeded("no answer in time") from None
        raise AssertionError


async def test_the_callers_deadline_ends_the_call_and_the_runs_own_is_an_error_of_the_run(lab: Lab) -> None:
    lab.model = Late()
    unlimited = experiment("{{ input.n }}", cache=UNCACHED)
    limited = replace(unlimited, limits=replace(unlimited.limits, run_timeout=0.02))
    async with lab.runner() as runner:
        with pytest.raises(DeadlineExceeded, match="the caller's time was over"):
            await heard(runner.execute_run(RunTarget(unlimited), 0.02))
        _, _, run = await heard(runner.execute_run(RunTarget(limited), 30))
    assert run.error is not None
    assert (run.error.reason, "limits.run_timeout" in run.error.message) == ("DEADLINE_EXCEEDED", True)


@pytest.mark.parametrize("policy", [UNCACHED, CachePolicy()])
async def test_a_caller_that_goes_stops_the_call(lab: Lab, policy: CachePolicy) -> None:
    lab.model = model = Slow()
    async with lab.runner() as runner:
        messages = runner.execute_run(RunTarget(experiment("{{ input.n }}", cache=policy)))
        first = await anext(messages)
        assert first.delta is not None
        assert first.delta.text == "well"
        await messages.aclose()  # type: ignore[attr-defined]
        async with asyncio.timeout(10):
            await model.stopped.wait()


async def test_it_is_counted_with_its_stages_its_savings_and_its_end(lab: Lab) -> None:
    counts, target = RunnerCounts(), RunTarget(experiment("{{ input.n }}"))
    lab.model.price = Price(1_000_000_000, 1_000_000_000)
    async with lab.runner(counts=counts) as runner:
        for _ in range(2):
            _, _, run = await heard(runner.execute_run(target))
        assert (counts.answers, counts.saved_nanousd) == ({"model": 1, "cache": 1}, run.cost_saved_nanousd)
        lab.model.say = lambda request: ProviderRejected("no")
        await heard(runner.execute_run(RunTarget(experiment("{{ input.n }}?"))))
        lab.model.go.clear()
        lab.model.called.clear()
        going = asyncio.ensure_future(heard(runner.execute_run(RunTarget(experiment("{{ input.n }}!")))))
        await lab.model.called.wait()
        assert counts.executing == 1
        going.cancel()
        await asyncio.wait([going])
        await eventually(lambda: counts.executing == 0)
    assert counts.executed == {"completed": 2, "failed": 1, "cancelled": 1}
    assert counts.run_seconds.cumulative()[-1][1] == 4


async def test_more_than_it_may_and_a_runner_that_leaves_are_said_at_once(lab: Lab) -> None:
    lab.model = Slow()
    hub = Hub()
    async with lab.runner(slots=1, hub=hub) as runner:
        messages = runner.execute_run(RunTarget(experiment("{{ input.n }}", cache=UNCACHED)))
        await anext(messages)
        with pytest.raises(ServiceUnavailable, match="executes 1 runs already"):
            await heard(runner.execute_run(RunTarget(experiment("{{ input.n }}", cache=UNCACHED))))
        await messages.aclose()  # type: ignore[attr-defined]
        hub.drain()
        with pytest.raises(Draining):
            await heard(runner.execute_run(RunTarget(experiment("{{ input.n }}", cache=UNCACHED))))
