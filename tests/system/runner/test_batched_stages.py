"""Stages of several calls by batches: each call is a question, whatever comes before it."""

from __future__ import annotations

from dataclasses import replace

from batch_lab import by_batch, left, model_of, runner_of
from runner_lab import Lab, ended, exported, stage

from promptlooper.completion import Completion, CompletionRequest, Tool, ToolCall
from promptlooper.experiment import CacheMode, CachePolicy, ExperimentSpec
from promptlooper.run import Run, RunState

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
WEATHER = Tool("weather", "The weather somewhere.", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = Completion("", "m", "tool_calls", 5, 3, tool_calls=(ToolCall("c0", "weather", '{"city": "Oslo"}'),))


async def ran(lab: Lab, spec: ExperimentSpec) -> list[Run]:
    async with runner_of(lab) as runner:
        created = await runner.create(spec)
        await ended(runner, created.experiment_id)
        return await exported(runner, created.experiment_id)


async def test_chats_tools_and_second_tries_go_by_batches_all_the_way(lab: Lab) -> None:
    def say(request: CompletionRequest) -> str | Completion:
        last = request.messages[-1]
        if request.tools:
            return f"{last.content} in Oslo" if last.role == "tool" else CALL
        if request.response_schema:
            return '{"n": 3}' if len(request.messages) > 1 else "three"
        return f"{last.content}, {len(request.messages)}"

    model = model_of(lab)
    model.say = say
    spec = by_batch(
        stage("{{ item }} {{ input.n }}", for_each="{{ ['hi', 'bye'] }}", continue_conversation=True),
        stage("Weather?", tools=(WEATHER,), tool_results={"weather": "rain"}),
        stage("Count {{ input.n }}.", response_schema=SCHEMA, retries_on_invalid=1),
        count=2,
    )
    runs = await ran(lab, spec)
    assert [run.output for run in runs] == ['{"n": 3}'] * 2
    assert [result.output for result in runs[1].stages] == [
        "hi 1, 1",
        "bye 1, 3",
        "",
        "rain in Oslo",
        "three",
        '{"n": 3}',
    ]
    assert all(result.batched or result.cached for run in runs for result in run.stages)
    assert [len(prompts) for prompts in model.asked] == [2, 2, 1, 1, 2, 2]  # all ask the same of the weather
    assert not model.calls
    assert left(lab) == [0, 0, 0]


async def test_a_retry_asks_in_a_batch_again_what_was_invalid(lab: Lab) -> None:
    model = model_of(lab)
    model.say = lambda request: "none"
    async with runner_of(lab) as runner:
        created = await runner.create(by_batch("first", stage("Count.", response_schema=SCHEMA), count=1))
        assert (await ended(runner, created.experiment_id)).counts.failed == 1
        model.say = lambda request: '{"n": 1}'
        await runner.retry(created.experiment_id)
        assert (await ended(runner, created.experiment_id)).counts.completed == 1
        (run,) = await exported(runner, created.experiment_id)
    assert model.asked == [["first"], ["Count."], ["Count."]]
    assert (run.state, run.output) == (RunState.COMPLETED, '{"n": 1}')


async def test_repeats_are_questions_of_their_own_until_the_cache_has_them(lab: Lab) -> None:
    model = model_of(lab)
    spec = by_batch("the same", count=1, repeats=5)
    await ran(lab, spec)
    assert model.asked == [["the same"] * 5]
    again = await ran(lab, replace(spec, cache=CachePolicy(CacheMode.READ_ONLY)))
    assert all(run.cached for run in again)
    assert len(model.batches) == 1


async def test_a_cache_that_is_only_read_shares_no_question_and_keeps_no_answer(lab: Lab) -> None:
    model = model_of(lab)
    spec = by_batch("the same", count=2, cache=CachePolicy(CacheMode.READ_ONLY))
    await ran(lab, spec)
    await ran(lab, spec)
    assert model.asked == [["the same"] * 2] * 2
