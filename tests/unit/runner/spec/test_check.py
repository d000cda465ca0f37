"""What the services know of an experiment: models, scorers, budgets, and what it may cost."""

# ruff: noqa: E501 (tables are read best with one case a line)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from promptlooper.completion import Completion, CompletionRequest, ModelCheck, ModelInfo, OnDelta, Price
from promptlooper.errors import Problem, ServiceUnavailable
from promptlooper.experiment import ExperimentSpec, MessageTemplate, ModelEntry, Pipeline, Stage
from promptlooper.runner.spec.check_services import check
from promptlooper.runner.spec.check_spec import problems_of
from promptlooper.runner.spec.normal import completed
from promptlooper.runner.spec.scorers import SCORER_TYPES
from promptlooper.scorer.registry import ScorerCore
from promptlooper.scoring import ScoreItem, ScorerCheck, ScorerInfo, ScoreValue


class Gateway:
    """Knows prices of priced/…, that free/… costs nothing, and that nope/… has no provider."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def complete(self, request: CompletionRequest, on_delta: OnDelta | None = None) -> Completion:
        raise NotImplementedError

    async def list_models(self) -> list[ModelInfo]:
        return []

    async def check_models(self, models: Sequence[str]) -> list[ModelCheck]:
        self.asked += models
        return [self._check(model) for model in models]

    @staticmethod
    def _check(model: str) -> ModelCheck:
        provider = model.partition("/")[0]
        if provider == "nope":
            return ModelCheck(model, "UNKNOWN_PROVIDER", "no provider is named 'nope'; did you mean 'mope'?")
        if provider == "keyless":
            return ModelCheck(model, "PROVIDER_CREDENTIALS", "OPENAI_API_KEY is not set")
        price = {"priced": Price(2_000_000_000, 10_000_000_000), "free": Price(0, 0)}.get(provider)
        return ModelCheck(model, price=price)


class Scoring:
    def __init__(self) -> None:
        self.asked: list[ScorerCheck] = []

    async def score(self, items: Sequence[ScoreItem]) -> list[list[ScoreValue]]:
        raise NotImplementedError

    async def list_scorers(self) -> list[ScorerInfo]:
        return []

    async def check(self, scorers: Sequence[ScorerCheck]) -> list[list[str]]:
        self.asked += scorers
        return [["missing )"] if one.value == "(" else [] for one in scorers]


async def checked(desk: Any, text: str) -> Any:
    return await check(desk.spec(text), Gateway(), Scoring())


async def test_models_that_cannot_be_asked_are_told_once_where_they_are_named_first(desk: Any) -> None:
    gateway = Gateway()
    read = desk.read(
        "models:\n  - free/a\n  - nope/b\nprompts:\n  p: Hi\n  q: Ho\n".replace(
            "prompts:\n  p: Hi\n  q: Ho\n", "pipelines:\n"
        )
        + "  p: [{prompt: Hi}]\n  q: [{prompt: Ho}, {prompt: Ha,\n      model: keyless/x}]\n"
    )
    found = await check(read.spec, gateway, Scoring())
    assert found.problems == (
        Problem("pipelines[0].models[1].model", "no provider is named 'nope'; did you mean 'mope'?"),
        Problem("pipelines[1].stages[1].model", "OPENAI_API_KEY is not set"),
    )
    assert gateway.asked == ["free/a", "nope/b", "keyless/x"]
    assert [str(read.located(problem)).rpartition("/e.yaml")[2] for problem in found.problems] == [
        ":3: no provider is named 'nope'; did you mean 'mope'?",
        ":7: OPENAI_API_KEY is not set",
    ]


async def test_models_that_no_stage_would_ask_are_not_looked_up(desk: Any) -> None:
    gateway = Gateway()
    await check(desk.spec("model: nope/b\npipelines: {p: [{prompt: a, model: free/a}]}\n"), gateway, Scoring())
    assert gateway.asked == ["free/a"]


async def test_scorers_are_checked_with_their_values_and_templates_flagged(desk: Any) -> None:
    scoring = Scoring()
    spec = desk.spec(
        "model: free/a\nprompt: Hi\ninputs: [{expected: x}]\nscorers:\n  - {regex: '('}\n  - {exact: '{{ expected }}'}\n"
        "  - {json-path-equals: {path: $.a, equals: ['{{ expected }}']}}\n  - {numeric: 3, tolerance: 0.5}\n"
    )
    found = await check(spec, Gateway(), scoring)
    assert found.problems == (Problem("scorers[0]", "missing )"),)
    assert [one.value_is_template for one in scoring.asked] == [False, True, True, False]
    assert scoring.asked[3].settings == {"tolerance": 0.5}


async def test_runs_and_calls_are_counted(desk: Any) -> None:
    found = await checked(
        desk,
        "models: [free/a, free/b]\nrepeats: 3\ninputs: [1, 2]\nsweep: {seed: [1, 2]}\n"
        "pipelines: {p: [{prompt: a}], q: [{prompt: a}, {prompt: b}]}\n",
    )
    assert (found.problems, found.runs, found.calls) == ((), 48, 72)


@pytest.mark.parametrize(
    ("stages", "calls", "at_least"),
    [
        ("[{prompt: '{{ item }}', for_each: '{{ input.turns }}'}]", 3 + 1, False),
        ("[{prompt: '{{ item }}', for_each: '{{ input.turns }}'}, {prompt: b}]", 4 + 2, False),
        ("[{prompt: a, tools: [{name: t}], tool_results: {t: x}}]", 2, True),
        ("[{prompt: a, tools: [{name: t}]}]", 2, False),
        ("[{prompt: a, response_schema: {type: object}, retries_on_invalid: 2}]", 2, True),
        ("[{prompt: a}, {prompt: '{{ item }}', for_each: '{{ stages[0].parsed }}'}]", 4, True),
    ],
)
async def test_items_of_inputs_are_counted_and_what_answers_decide_is_said_to_be_more(
    desk: Any, stages: str, calls: int, at_least: bool
) -> None:
    rows = "inputs: [{turns: [a, b, c]}, {turns: [d]}]\n"
    found = await checked(desk, f"model: free/a\n{rows}pipelines: {{p: {stages}}}\n")
    assert (found.problems, found.calls, found.calls_at_least) == ((), calls, at_least)


@pytest.mark.parametrize(
    ("inputs", "for_each", "said"),
    [
        ("[{a: 1}, {a: 2}]", "{{ range(101) | list }}", "'for_each' must give 1 to 100 items, and gave 101"),
        ("[{a: 1}, {a: []}]", "{{ input.a }}", "'for_each' must give a list, and gave 1"),
        ("[{a: 1}, {a: [1]}]", "{{ input.a }}", None),
        ("[{a: 1}]", "{{ prev_output }}", None),
    ],
)
async def test_a_list_that_no_input_gives_is_told_before_anything_runs(
    desk: Any, inputs: str, for_each: str, said: str | None
) -> None:
    stages = f"[{{prompt: a}}, {{prompt: '{{{{ item }}}}', for_each: '{for_each}'}}]"
    found = await checked(desk, f"model: free/a\ninputs: {inputs}\npipelines: {{p: {stages}}}\n")
    problem = Problem("pipelines[0].stages[1].for_each", f"{said}; so it is for every input")
    assert found.problems == (() if said is None else (problem,))


async def test_many_rows_are_counted_by_some_from_all_over_them(desk: Any) -> None:
    rows = ", ".join(f"{{turns: [a{', b' * (n % 2)}]}}" for n in range(3_000))
    stages = "[{prompt: '{{ item }}', for_each: '{{ input.turns }}'}]"
    found = await checked(desk, f"model: free/a\ninputs: [{rows}]\npipelines: {{p: {stages}}}\n")
    assert found.calls == 4_500


@pytest.mark.parametrize(
    ("text", "nanousd"),
    [
        ("model: free/a\nprompt: Hi\n", 0),
        ("model: other/a\nprompt: Hi\nparams: {max_tokens: 5}\n", None),
        ("model: priced/a\nprompt: Hi\n", None),
        # 4 characters are 1 token in at 2,000 nano-dollars; 5 tokens out at 10,000 each
        ("model: priced/a\nprompt: abcd\nparams: {max_tokens: 5}\n", 2_000 + 50_000),
        (
            "model: priced/a\nprompt: '{{ input }}'\nparams: {max_tokens: 5}\ninputs: [abcd, abcdefgh]\n",
            6_000 + 100_000,
        ),
        # the second stage reads what the first may write
        (
            "model: priced/a\nparams: {max_tokens: 5}\n"
            "pipelines: {p: [{prompt: abcd}, {prompt: '{{ prev_output }}', params: {max_tokens: 1}}]}\n",
            2_000 + 50_000 + 17 * 500 + 10_000 + 10_000,
        ),
        ("models: [priced/a, free/b]\nprompt: abcd\nparams: {max_tokens: 5}\nrepeats: 10\n", 520_000),
        # three items; those of one conversation read what was said before: 1, 1 + 6 and 1 + 12 tokens
        (
            "model: priced/a\nparams: {max_tokens: 5}\npipelines: {p: [{prompt: abcd, for_each: '{{ [1, 2, 3] }}'}]}\n",
            3 * (2_000 + 50_000),
        ),
        (
            "model: priced/a\nparams: {max_tokens: 5}\n"
            "pipelines: {p: [{prompt: abcd, for_each: '{{ [1, 2, 3] }}', continue: true}]}\n",
            3 * 50_000 + (1 + 7 + 13) * 2_000,
        ),
    ],
)
async def test_cost_is_estimated_from_lengths_and_max_tokens_or_unknown(
    desk: Any, text: str, nanousd: int | None
) -> None:
    found = await checked(desk, text)
    assert (found.problems, found.estimated_cost_nanousd) == ((), nanousd)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: other/a\nprompt: Hi\nparams: {max_tokens: 5}\nlimits: {budget_usd: 1}\n", "needs a price of 'other/a'"),
        ("model: priced/a\nprompt: Hi\nlimits: {budget_usd: 1}\n", "needs 'max_tokens' for every call; stage 0 with 'priced/a'"),
        ("model: priced/a\nparams: {max_tokens: 5}\npipelines: {p: [{prompt: a}, {prompt: b, params: {max_tokens: null}}]}\n"
         "limits: {budget_usd: 1}\n", "stage 1 with 'priced/a' has none"),
        ("model: free/a\nprompt: Hi\nlimits: {budget_tokens: 1}\n", "a budget_tokens needs 'max_tokens' for every call"),
        ("model: free/a\nprompt: Hi\nlimits: {budget_usd: 1}\n", ""),
        ("model: priced/a\nprompt: Hi\nparams: {max_tokens: 5}\nlimits: {budget_usd: 1, budget_tokens: 100}\n", ""),
    ],
)  # fmt: skip
async def test_hard_budget_needs_an_upper_bound_of_every_call(desk: Any, text: str, said: str) -> None:
    found = await checked(desk, text)
    assert [problem.field.partition("_")[0] for problem in found.problems] == (["limits.budget"] if said else [])
    assert all(said in problem.message for problem in found.problems)


async def test_problems_of_the_spec_itself_are_among_them() -> None:
    spec = completed(
        ExperimentSpec(
            name="x",
            pipelines=(
                Pipeline("p", (Stage((MessageTemplate("user", "{{ nope }}"),)),), (ModelEntry("m", "nope/m"),)),
            ),
            inputs=(),
        )
    )
    found = await check(spec, Gateway(), Scoring())
    assert [problem.field for problem in found.problems] == [
        "pipelines[0].stages[0].messages[0].content",
        "pipelines[0].models[0].model",
    ]
    assert found.estimated_cost_nanousd is None


async def test_service_that_does_not_answer_is_no_problem_of_the_file(desk: Any) -> None:
    class Gone(Gateway):
        async def check_models(self, models: Sequence[str]) -> list[ModelCheck]:
            raise ServiceUnavailable("the Adapter does not answer")

    with pytest.raises(ServiceUnavailable):
        await check(desk.spec("model: a/b\nprompt: Hi\n"), Gone(), Scoring())


def test_spec_of_a_client_is_checked_like_a_file() -> None:
    found = problems_of(ExperimentSpec(name=" ", pipelines=(), inputs=(), project="A", repeats=0))
    assert {problem.field for problem in found} == {"name", "pipelines", "project", "repeats"}
    empty = ExperimentSpec(name="x", pipelines=(Pipeline("", (), ()), Pipeline("", (Stage(()),), ())), inputs=())
    fields = [problem.field for problem in problems_of(empty)]
    assert "pipelines[0].stages" in fields
    assert "pipelines[1].models" in fields
    assert "pipelines[1].stages[0].messages" in fields
    assert "pipelines[1].name" in fields


async def test_types_known_when_reading_are_those_of_the_scorer() -> None:
    assert set(SCORER_TYPES) == {info.type for info in await ScorerCore().list_scorers()}


async def test_bad_regex_bad_schema_and_unknown_setting_are_told_by_the_scorer(desk: Any) -> None:
    read = desk.read(
        "model: free/a\nprompt: Hi\nscorers:\n  - regex: '('\n  - json-schema: {type: objct}\n"
        "  - numeric: 3\n    tolerence: 1\n  - regex: '{{ output }}'\n    name: late\n"
    )
    found = await check(read.spec, Gateway(), ScorerCore())
    assert [read.origin(problem.field).line for problem in found.problems] == [4, 5, 6]
