"""Stages that take several calls, and answers that are more than text, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from runner_lab import Lab, Said, ScriptedModel, ended, experiment, exported, stage

from promptlooper.completion import Completion, CompletionRequest, Message, Tool, ToolCall
from promptlooper.experiment import CacheMode, CachePolicy, MessageTemplate, Stage
from promptlooper.run import Run, RunState
from promptlooper.testing.eventually import eventually

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
WEATHER = Tool("weather", "of a city", {"type": "object", "properties": {"city": {"type": "string"}}})
OFF = CachePolicy(CacheMode.OFF)


def in_turn(*said: Said) -> Callable[[CompletionRequest], Said]:
    """Says one after the other."""
    left = list(said)
    return lambda request: left.pop(0)


def asking(*arguments: str, name: str = "weather", text: str = "") -> Completion:
    calls = tuple(ToolCall(f"c{n}", name, said) for n, said in enumerate(arguments))
    return Completion(text, "m", "tool_calls", 5, 3, cost_nanousd=7, tool_calls=calls)


def places(run: Run) -> list[tuple[int, int, int]]:
    return [(result.stage_index, result.iteration, result.round) for result in run.stages]


def said(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


async def test_a_scripted_chat_goes_on_over_all_its_turns(lab: Lab) -> None:
    lab.model = ScriptedModel(lambda request: f"answer {len(request.messages)}")
    chat = Stage(
        (MessageTemplate("system", "Be brief."), MessageTemplate("user", "{{ item_index }}: {{ item }}")),
        for_each="{{ input.turns }}",
        continue_conversation=True,
    )
    summary = stage("Sum up.", continue_conversation=True)
    _, (run,) = await lab.ran(experiment(chat, summary, rows=[{"turns": ["hi", "why?", "bye"]}]))
    assert run.state is RunState.COMPLETED
    assert places(run) == [(0, 0, 0), (0, 1, 0), (0, 2, 0), (1, 0, 0)]
    assert said(run.stages[2].messages) == [
        *(("system", "Be brief."), ("user", "0: hi"), ("assistant", "answer 2")),
        *(("user", "1: why?"), ("assistant", "answer 4"), ("user", "2: bye")),
    ]
    assert said(run.stages[3].messages)[-1] == ("user", "Sum up.")
    assert run.output == run.stages[3].output == "answer 8"


async def test_a_stage_that_continues_after_calls_nobody_answered_says_that_they_were_not_run(lab: Lab) -> None:
    lab.model = ScriptedModel(in_turn(asking('{"city": "Oslo"}', '{"city": "Bergen"}', text="Let me look."), "Sunny."))
    _, (run,) = await lab.ran(experiment(stage("?", tools=(WEATHER,)), stage("So?", continue_conversation=True)))
    assert (run.state, run.output) == (RunState.COMPLETED, "Sunny.")
    sent = run.stages[1].messages
    assert [(message.role, message.tool_call_id) for message in sent] == [
        *(("user", ""), ("assistant", "")),
        *(("tool", "c0"), ("tool", "c1"), ("user", "")),
    ]
    assert sent[2].content == sent[3].content == "Error: there is no result, as this tool was not run."


async def test_items_without_continue_are_questions_of_their_own(lab: Lab) -> None:
    lab.model = ScriptedModel(lambda request: request.messages[-1].content.upper())
    first, each = stage("topic", "topic"), stage("{{ prev_output }} {{ item }}", for_each="{{ input.parts }}")
    last = stage("{{ stages[1].output }} {{ stages.topic.output }}")
    _, (run,) = await lab.ran(experiment(first, each, last, rows=[{"parts": ["a", "b"]}]))
    assert [said(result.messages) for result in run.stages] == [
        [("user", "topic")],
        [("user", "TOPIC a")],
        [("user", "TOPIC b")],
        [("user", "TOPIC B TOPIC")],
    ]


@pytest.mark.parametrize(
    ("turns", "why"), [("hi", "gave text"), ([], "gave 0"), ([1] * 101, "gave 101"), (None, "gave null")]
)
async def test_a_row_whose_items_are_no_list_fails_alone(lab: Lab, turns: Any, why: str) -> None:
    each = stage("{{ item }}", for_each="{{ input.turns }}")
    _, runs = await lab.ran(experiment(each, rows=[{"turns": turns}, {"turns": ["a"]}]))
    assert [run.state for run in runs] == [RunState.FAILED, RunState.COMPLETED]
    assert runs[0].error is not None
    assert runs[0].error.reason == "TEMPLATE_ERROR"
    assert why in runs[0].error.message


async def test_a_list_that_later_stages_need_and_that_is_none_loses_no_answer(lab: Lab) -> None:
    each = stage("{{ item }}", for_each="{{ stages.plan.parsed }}")
    _, (run,) = await lab.ran(experiment(stage("plan", "plan"), each))
    assert run.state is RunState.FAILED
    assert [result.output for result in run.stages] == ["fine"]
    assert run.tokens_out == 4


async def test_tools_are_answered_from_the_file_and_nothing_is_executed(lab: Lab) -> None:
    lab.model = ScriptedModel(in_turn(asking('{"city": "Oslo"}', '{"city": "Rome"}'), "Rain in Oslo."))
    asks = stage(
        "Weather?",
        tools=(WEATHER,),
        tool_choice="auto",
        tool_results={"weather": "{{ arguments.city }}: {{ input.weather }}"},
    )
    _, (run,) = await lab.ran(experiment(asks, rows=[{"weather": "rain"}]))
    first, second = lab.model.requests
    assert (first.tools, first.tool_choice) == ((WEATHER,), "auto")
    calls = (ToolCall("c0", "weather", '{"city": "Oslo"}'), ToolCall("c1", "weather", '{"city": "Rome"}'))
    assert second.messages[1:] == (
        Message("assistant", "", tool_calls=calls),
        Message("tool", "Oslo: rain", tool_call_id="c0", name="weather"),
        Message("tool", "Rome: rain", tool_call_id="c1", name="weather"),
    )
    assert places(run) == [(0, 0, 0), (0, 0, 1)]
    assert run.stages[0].tool_calls == calls
    assert run.output == "Rain in Oslo."


async def test_calls_of_tools_without_results_are_the_answer(lab: Lab) -> None:
    lab.model = ScriptedModel(in_turn(asking('{"city": "Oslo"}')))
    _, (run,) = await lab.ran(experiment(stage("Weather?", tools=(WEATHER,))))
    assert run.state is RunState.COMPLETED
    assert run.stages[0].tool_calls[0].arguments == '{"city": "Oslo"}'


async def test_a_model_that_never_stops_asking_for_tools_is_stopped(lab: Lab) -> None:
    lab.model = ScriptedModel(lambda request: asking("{}"))
    asks = stage("Weather?", tools=(WEATHER,), tool_results={"weather": "rain"})
    _, (run,) = await lab.ran(experiment(asks))
    assert run.state is RunState.COMPLETED
    assert places(run) == [(0, 0, n) for n in range(10)]


async def test_an_answer_that_does_not_match_is_asked_again_with_the_reason(lab: Lab) -> None:
    lab.model = ScriptedModel(in_turn("no JSON", '{"n": "x"}', '{"n": 3}'))
    asks = stage("Count.", response_schema=SCHEMA, retries_on_invalid=2)
    _, (run,) = await lab.ran(experiment(asks, cache=OFF))
    assert run.state is RunState.COMPLETED
    assert run.output == '{"n": 3}'
    assert [result.error.reason if result.error else None for result in run.stages] == ["OUTPUT_INVALID"] * 2 + [None]
    assert 'at /n: "x" is not of type "integer"' in lab.model.requests[2].messages[-1].content
    assert lab.model.requests[0].response_schema == SCHEMA
    assert run.error is None


async def test_an_answer_that_stays_invalid_fails_the_run_which_shows_it(lab: Lab) -> None:
    lab.model = ScriptedModel(lambda request: "no JSON")
    asks = stage("Count.", "count", response_schema=SCHEMA, retries_on_invalid=1)
    found, (run,) = await lab.ran(experiment(asks, stage("never")))
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert (run.error.reason, run.error.stage) == ("OUTPUT_INVALID", "count")
    assert [result.output for result in run.stages] == ["no JSON"] * 2
    assert run.tokens_out == found.tokens_out == 14
    assert run.output is None


async def test_arguments_that_are_no_json_are_invalid_too(lab: Lab) -> None:
    lab.model = ScriptedModel(in_turn(asking('{"city": '), asking('{"city": "Oslo"}'), "Rain."))
    asks = stage("Weather?", tools=(WEATHER,), tool_results={"weather": "rain"}, retries_on_invalid=1)
    _, (run,) = await lab.ran(experiment(asks, cache=OFF))
    assert run.output == "Rain."
    assert "not a JSON object" in lab.model.requests[1].messages[-1].content
    assert lab.model.requests[1].messages[-1].tool_call_id == "c0"


async def test_invalid_answers_are_asked_anew_and_good_ones_are_not(lab: Lab) -> None:
    lab.model = ScriptedModel(in_turn("no JSON", '{"n": 1}'))
    asks = experiment(stage("Count.", response_schema=SCHEMA))
    assert (await lab.ran(asks))[1][0].state is RunState.FAILED
    assert (await lab.ran(asks))[1][0].output == '{"n": 1}'
    assert (await lab.ran(asks))[1][0].cached


async def test_a_retry_asks_the_invalid_question_again_and_keeps_the_stages_before(lab: Lab) -> None:
    lab.model = ScriptedModel(in_turn("topic", "no JSON", "still none", '{"n": 1}'))
    asks = stage("Count.", response_schema=SCHEMA, retries_on_invalid=1)
    async with lab.runner() as runner:
        experiment_id = (await runner.create(experiment("topic?", asks, cache=OFF))).experiment_id
        await ended(runner, experiment_id)
        assert (await exported(runner, experiment_id))[0].state is RunState.FAILED
        await runner.retry(experiment_id, "again")
        await ended(runner, experiment_id)
        (run,) = await exported(runner, experiment_id)
    assert run.state is RunState.COMPLETED
    assert places(run) == [(0, 0, 0), (1, 0, 0)]
    assert [message.content for message in lab.model.requests[3].messages] == ["Count."]


async def test_a_run_that_another_runner_takes_up_goes_on_with_the_next_item(lab: Lab) -> None:
    lab.model = ScriptedModel(lambda request: f"answer {request.messages[-1].content}")
    chat = stage("{{ item }}", for_each="{{ input.turns }}", continue_conversation=True)
    asks = experiment(chat, rows=[{"turns": ["a", "b", "c"]}], cache=OFF)
    async with lab.runner() as runner:
        experiment_id = (await runner.create(asks)).experiment_id
        await eventually(lambda: lab.model.calls["b"] > 0)
    async with lab.runner() as runner:
        await ended(runner, experiment_id)
        (run,) = await exported(runner, experiment_id)
    assert run.state is RunState.COMPLETED
    assert places(run) == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]
    assert lab.model.calls["a"] == 1


async def test_images_go_with_the_last_user_message(lab: Lab) -> None:
    pixel = "data:image/png;base64,iVBORw0KGgo="
    shows = Stage(
        (MessageTemplate("user", "one"), MessageTemplate("assistant", "yes"), MessageTemplate("user", "two")),
        images=(pixel, "{{ input.photos }}"),
    )
    rows = [{"photos": ["https://example.org/a.png"]}, {"photos": "ftp://example.org/a.png"}]
    _, runs = await lab.ran(experiment(shows, rows=rows))
    assert [message.images for message in lab.model.requests[0].messages] == [
        (),
        (),
        (pixel, "https://example.org/a.png"),
    ]
    assert runs[1].error is not None
    assert "an image must be" in runs[1].error.message
    assert runs[0].stages[0].messages[2].images == (pixel, "https://example.org/a.png")


@pytest.mark.parametrize("photos", [None, 3, {"a": "https://example.org/a.png"}, ["https://example.org/a.png", None]])
async def test_an_image_that_is_none_fails_its_run_and_is_not_left_out(lab: Lab, photos: Any) -> None:
    shows = Stage((MessageTemplate("user", "what?"),), images=("{{ input.photos }}",))
    _, (run,) = await lab.ran(experiment(shows, rows=[{"photos": photos}]))
    assert run.error is not None
    assert (run.error.reason, run.stages) == ("TEMPLATE_ERROR", ())
    assert "an image must be" in run.error.message
    assert not lab.model.requests


async def test_a_retry_keeps_an_invalid_answer_that_a_good_one_followed(lab: Lab) -> None:
    """It was paid, and is part of what the run shows. Stage 1 fails before it asks anything."""
    lab.model = ScriptedModel(in_turn("no JSON", '{"n": 1}'))
    asks = stage("Count.", response_schema=SCHEMA, retries_on_invalid=1)
    async with lab.runner() as runner:
        spec = experiment(asks, stage("{{ stages[0].parsed.missing }}"), cache=OFF)
        experiment_id = (await runner.create(spec)).experiment_id
        await ended(runner, experiment_id)
        for request_id in ("once", "twice"):
            await runner.retry(experiment_id, request_id)
            await ended(runner, experiment_id)
        (run,) = await exported(runner, experiment_id)
    assert run.state is RunState.FAILED
    assert places(run) == [(0, 0, 0), (0, 0, 1)]
    assert len(lab.model.requests) == 2


async def test_all_that_an_answer_holds_is_kept(lab: Lab) -> None:
    answer = Completion(
        "fine",
        "m",
        "stop",
        5,
        3,
        tokens_cache_write_in=2,
        provider_data='{"signature": "x"}',
        price_version="p1",
        logprobs=[{"token": "fine", "logprob": -0.1, "top": []}],
        cost_nanousd=1,
    )
    lab.model = ScriptedModel(lambda request: answer)
    _, (run,) = await lab.ran(experiment("a", stage("b", continue_conversation=True)))
    kept = run.stages[0]
    assert (kept.tokens_cache_write_in, kept.provider_data, kept.price_version) == (2, '{"signature": "x"}', "p1")
    assert kept.logprobs == [{"token": "fine", "logprob": -0.1, "top": []}]
    assert lab.model.requests[1].messages[1].provider_data == '{"signature": "x"}'
