"""The rules of the engine, on SQLite and on PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from runner_lab import Lab, ended, experiment, stage

from promptlooper.completion import Completion
from promptlooper.errors import (
    CompletionFailed,
    DeadlineExceeded,
    InvalidExperiment,
    ProviderRejected,
    ProviderUnavailable,
)
from promptlooper.experiment import (
    CacheMode,
    CachePolicy,
    ExperimentState,
    InputRow,
    ModelEntry,
    Pipeline,
    ScorerSpec,
)
from promptlooper.run import RunState


async def test_rule_1_an_experiment_with_one_prompt_is_a_single_stage(lab: Lab) -> None:
    _, (run,) = await lab.ran(experiment("hello {{ input.n }}", params={"temperature": 0.5}))
    assert [s.messages[-1].content for s in run.stages] == ["hello 1"]
    assert (run.state, run.output, run.stages[0].params) == (RunState.COMPLETED, "fine", {"temperature": 0.5})


async def test_rule_2_stage_settings_override_and_earlier_results_are_there_by_index_and_name(lab: Lab) -> None:
    lab.model.say = lambda request: f"<{request.messages[-1].content}>"
    spec = experiment(
        stage("[{{ prev_output }}]{{ stage_index }}", "first", params={"temperature": 1}, model="mock/pinned"),
        "{{ stages[0].output }} {{ stages.first.output }} {{ prev_output }} {{ stage_index }}",
        params={"temperature": 0, "top_p": 1},
    )
    _, (run,) = await lab.ran(spec)
    assert [s.messages[-1].content for s in run.stages] == ["[]0", "<[]0> <[]0> <[]0> 1"]
    assert [s.params for s in run.stages] == [{"temperature": 1, "top_p": 1}, {"temperature": 0, "top_p": 1}]
    assert [s.model_requested for s in run.stages] == ["mock/pinned", "mock/m"]


@pytest.mark.parametrize(
    ("value", "printed"),
    [(0, "0"), (False, "false"), ("", ""), ([], "[]"), (None, "null"), ({"a": 1.5}, '{"a":1.5}'), (3, "3")],
)
async def test_rule_2_input_values_reach_the_template_unchanged(lab: Lab, value: Any, printed: str) -> None:
    spec = experiment("{{ input.v }}|{{ input.v is defined }}", rows=[{"v": value}])
    _, (run,) = await lab.ran(spec)
    assert run.stages[0].messages[-1].content == f"{printed}|true"
    assert run.input == {"v": value}


async def test_rule_2_a_column_named_like_a_python_method_is_the_column(lab: Lab) -> None:
    spec = experiment("{{ input.items }} {{ input.keys }}", rows=[{"items": "shelf", "keys": [1, 2]}])
    _, (run,) = await lab.ran(spec)
    assert run.stages[0].messages[-1].content == "shelf [1,2]"


async def test_rule_3_a_key_that_only_some_rows_lack_fails_those_runs_naming_variable_and_stage(lab: Lab) -> None:
    spec = experiment(stage("{{ input.city }}", "ask"), rows=[{"city": "Paris"}, {"town": "Bern"}, {"city": "Oslo"}])
    done, runs = await lab.ran(spec)
    assert [run.state for run in runs] == [RunState.COMPLETED, RunState.FAILED, RunState.COMPLETED]
    assert (done.state, done.counts.failed) == (ExperimentState.COMPLETED, 1)
    error = runs[1].error
    assert error is not None
    assert (error.reason, error.stage, error.stage_index) == ("TEMPLATE_ERROR", "ask", 0)
    assert "input.city" in error.message
    assert "'ask'" in error.message


async def test_rule_3_what_can_be_known_before_is_refused_and_nothing_is_stored(lab: Lab) -> None:
    async with lab.runner() as runner:
        with pytest.raises(InvalidExperiment) as refused:
            await runner.create(experiment("{{ nonsense }} {{ input.absent }} {{ stages[1].output }}"))
        assert len(refused.value.problems) == 3
        from promptlooper.experiments import ExperimentFilter

        assert (await runner.list_experiments(ExperimentFilter())).experiments == ()


async def test_rule_4_output_that_looks_like_a_template_is_passed_on_as_text(lab: Lab) -> None:
    lab.model.say = lambda request: "{{ 7*7 }}{% raw %}{# x #}"
    spec = experiment("a", "{{ prev_output }}", scorers=(ScorerSpec("same", "exact", "{{ output }}"),))
    _, (run,) = await lab.ran(spec)
    assert run.stages[1].messages[-1].content == "{{ 7*7 }}{% raw %}{# x #}"
    assert run.scores[0].value == 1


async def test_rule_5_a_scorer_that_fails_is_recorded_and_the_run_completes(lab: Lab) -> None:
    scorers = (
        ScorerSpec("size", "numeric", "{{ input.n }}", threshold=1),
        ScorerSpec("late", "exact", "{{ input.gone }}"),
        ScorerSpec("has", "contains", "fin", weight=2),
    )
    rows: list[Any] = [{"n": "many", "gone": 1}, {"n": "many"}]
    _, runs = await lab.ran(experiment("x", rows=rows, scorers=scorers))
    assert [run.state for run in runs] == [RunState.COMPLETED] * 2
    numeric, late, has = runs[1].scores
    assert numeric.value is None
    assert numeric.error
    assert late.value is None
    assert "input.gone" in (late.error or "")
    assert (has.value, runs[1].score, runs[1].passed) == (1, 1, False)


async def test_rule_6_totals_are_exact_and_a_cached_answer_costs_nothing_and_says_what_it_saved(lab: Lab) -> None:
    from promptlooper.completion import Price

    lab.model.price = Price(2_000_000, 3_000_000)  # 2 and 3 nano-USD a token
    spec = experiment("ask {{ input.n }}", "again {{ input.n }}", rows=[{"n": n} for n in range(10, 20)])
    first, runs = await lab.ran(spec)
    per_run = (6 * 2 + 4 * 3) + (8 * 2 + 4 * 3)
    assert [run.cost_nanousd for run in runs] == [per_run] * 10
    assert (first.cost_nanousd, first.tokens_in, first.tokens_out) == (per_run * 10, 140, 80)
    again, cached = await lab.ran(spec)
    assert sum(lab.model.calls.values()) == 20
    assert (again.cost_nanousd, again.cost_saved_nanousd, again.counts.cached) == (0, per_run * 10, 10)
    assert (again.tokens_in, again.tokens_out) == (140, 80)
    assert [(r.cached, r.cost_nanousd, r.cost_saved_nanousd, r.latency_ms, r.attempts) for r in cached] == [
        (True, 0, per_run, 10, 0)
    ] * 10


async def test_rule_6_an_unknown_price_is_null_and_never_zero(lab: Lab) -> None:
    done, (run,) = await lab.ran(experiment("x"))
    assert run.cost_nanousd is None
    assert done.total_cost_nanousd is None
    assert done.cost_unknown_calls == 1


@pytest.mark.parametrize(
    "error",
    [
        ProviderRejected("no such thing", attempts=1),
        ProviderUnavailable("down", attempts=3),
        DeadlineExceeded("late", attempts=2),
    ],
    ids=lambda error: error.reason,
)
async def test_rule_7_a_failed_stage_fails_the_run_and_keeps_the_finished_ones(
    lab: Lab, error: CompletionFailed
) -> None:
    lab.model.say = lambda request: error if request.messages[-1].content.startswith("second") else "one"
    spec = experiment("first", stage("second", "two"), scorers=(ScorerSpec("s", "contains", "x"),))
    done, (run,) = await lab.ran(spec)
    assert (run.state, [s.output for s in run.stages], run.output, run.scores) == (
        RunState.FAILED,
        ["one", ""],
        None,
        (),
    )
    assert run.stages[1].messages[-1].content == "second"  # what was refused can be seen
    assert run.stages[1].error == run.error
    assert run.error is not None
    assert (run.error.reason, run.error.stage, run.error.stage_index) == (error.reason, "two", 1)
    assert (run.error.attempts, run.error.retryable, run.attempts) == (
        error.attempts,
        error.retryable,
        1 + error.attempts,
    )
    assert (done.state, done.counts.failed) == (ExperimentState.COMPLETED, 1)
    lab.model.say = lambda request: "fine"
    again, _ = await lab.ran(replace(spec, cache=CachePolicy(CacheMode.OFF)))
    assert again.counts.completed == 1


async def test_rule_7_a_filtered_answer_fails_the_run_and_is_kept(lab: Lab) -> None:
    lab.model.say = lambda request: Completion("I", "m", "content_filter", 1, 1)
    _, (run,) = await lab.ran(experiment("a", "b"))
    assert (run.state, len(run.stages), run.error and run.error.reason) == (RunState.FAILED, 1, "CONTENT_FILTERED")


async def test_rule_8_no_transaction_is_open_while_a_caller_waits(lab: Lab) -> None:
    """While every call hangs, another connection may lock any row at once."""
    lab.model.go.clear()
    async with lab.runner() as runner:
        created = await runner.create(experiment("hang {{ input.n }}", rows=[{"n": n} for n in range(5)]))
        await lab.model.called.wait()
        cancelled = await runner.cancel(created.experiment_id)  # takes the experiment's lock
        assert cancelled.state in (ExperimentState.CANCELLING, ExperimentState.CANCELLED)


async def test_the_grid_is_run_in_order_with_every_variant_and_repeat(lab: Lab) -> None:
    pipelines = tuple(
        Pipeline(name, (stage(name),), (ModelEntry("m", "mock/m"), ModelEntry("hot", "mock/m", {"temperature": 1})))
        for name in ("p", "q")
    )
    spec = experiment(
        rows=[{"n": 0}, {"n": 1}],
        pipelines=pipelines,
        repeats=2,
        sweep=({"top_p": 0.5}, {"top_p": 1}),
        params={"seed": 1},
    )
    done, runs = await lab.ran(spec)
    assert done.counts.total == len(runs) == 2 * 2 * 2 * 2 * 2
    keys = [(r.input_index, r.repeat, r.pipeline, r.model, r.params["top_p"]) for r in runs]
    assert keys == [
        (i, k, p, m, t) for i in (0, 1) for k in (0, 1) for p in "pq" for m in ("m", "hot") for t in (0.5, 1)
    ]
    assert len({run.variant_id for run in runs}) == 8


async def test_concurrency_never_exceeds_the_cap(lab: Lab) -> None:
    spec = experiment("{{ input.n }}", rows=[{"n": n} for n in range(60)], limits={"max_concurrency": 7})
    await lab.ran(spec)
    assert lab.model.most_running <= 7


async def test_200_identical_questions_make_one_call(lab: Lab) -> None:
    rows = [InputRow(f"r{n}", {"n": n}) for n in range(200)]
    done, runs = await lab.ran(experiment("the same for all", rows=rows, limits={"max_concurrency": 200}))
    assert sum(lab.model.calls.values()) == 1
    assert sorted(run.cached for run in runs) == [False] + [True] * 199
    assert done.counts.cached == 199


async def test_scores_in_error_do_not_reach_the_means(lab: Lab) -> None:
    async with lab.runner() as runner:
        scorers = (ScorerSpec("price", "cost", 1),)  # the price is unknown
        created = await runner.create(experiment("x {{ input.n }}", rows=[{"n": n} for n in range(3)], scorers=scorers))
        await ended(runner, created.experiment_id)
        (variant,) = (await runner.summarize(created.experiment_id)).variants
    assert (variant.scores[0].mean, variant.scores[0].n, variant.scores[0].errors) == (None, 0, 3)
    assert variant.score is None
