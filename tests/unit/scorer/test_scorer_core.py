"""The scorer core: bounds, failures, checks."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from promptlooper.jsonvalue import JsonObject
from promptlooper.scorer.registry import ScorerCore
from promptlooper.scorer.scorertype import ScorerType, Subject
from promptlooper.scoring import ScoreItem, ScorerCall, ScorerCheck, ScoreValue, ScoringService


def made(score: Any) -> ScorerCore:
    kind = ScorerType(
        type="made-up",
        description="For tests.",
        score=score,
        value_schema={"description": "anything"},
        value_required=False,
    )
    return ScorerCore([kind])


def giving(value: float) -> ScorerCore:
    return made(lambda subject, wanted, settings: ScoreValue(value, "because", metadata={"raw": 1}))


@pytest.mark.parametrize(
    ("kind", "given", "got"),
    [("made-up", 1.5, 1.0), ("made-up", -2.0, 0.0), ("not-made-up", 1.5, 0.0), ("not-made-up", 0.25, 0.75)],
)
async def test_value_is_clamped_before_it_is_negated(kind: str, given: float, got: float) -> None:
    [[score]] = await giving(given).score([ScoreItem("x", (ScorerCall(kind),))])
    assert (score.value, score.explanation, score.metadata) == (got, "because", {"raw": 1})


@pytest.mark.parametrize("given", [math.nan, math.inf, -math.inf])
async def test_value_that_is_not_finite_is_an_error(given: float) -> None:
    [[score]] = await giving(given).score([ScoreItem("x", (ScorerCall("made-up"),))])
    assert score.value is None
    assert score.error is not None
    assert "which is not a score" in score.error


async def test_scorer_that_raises_fails_its_own_score_only() -> None:
    def fragile(subject: Subject, value: Any, settings: JsonObject) -> ScoreValue:
        if subject.text == "bad":
            raise KeyError("inside")
        return ScoreValue(1.0)

    scores = await made(fragile).score([ScoreItem(text, (ScorerCall("made-up"),)) for text in ("good", "bad", "good")])
    assert [score.value for [score] in scores] == [1.0, None, 1.0]
    assert scores[1][0].error == "the scorer 'made-up' failed: KeyError: 'inside'"


async def test_scores_come_in_the_order_of_items_and_calls() -> None:
    core: ScoringService = ScorerCore()
    items = [
        ScoreItem(str(i), (ScorerCall("exact", i), ScorerCall("not-exact", i), ScorerCall("exact", -1)))
        for i in range(130)
    ]
    scores = await core.score(items)
    assert [[score.value for score in row] for row in scores] == [[1.0, 0.0, 0.0]] * 130


async def test_call_with_its_own_output_scores_that_one() -> None:
    calls = (
        ScorerCall("exact", "think", output="think"),
        ScorerCall("exact", "last"),
        ScorerCall("exact", "", output=""),
    )
    [scores] = await ScorerCore().score([ScoreItem("last", calls)])
    assert [score.value for score in scores] == [1.0, 1.0, 1.0]


async def test_unknown_scorer_is_an_error_that_names_the_nearest() -> None:
    [[score]] = await ScorerCore().score([ScoreItem("x", (ScorerCall("contain", "x"),))])
    assert (score.value, score.error) == (None, "there is no scorer 'contain'; the nearest is 'contains'")


async def test_text_that_is_not_valid_unicode_is_an_error_of_that_score() -> None:
    [[regex, contains]] = await ScorerCore().score(
        [ScoreItem("\ud800", (ScorerCall("regex", "x"), ScorerCall("contains", "x")))]
    )
    assert regex.error is not None
    assert contains.value == 0.0


async def test_long_texts_are_cut_in_explanations() -> None:
    [[score]] = await ScorerCore().score([ScoreItem("y" * 10_000, (ScorerCall("exact", "x" * 10_000),))])
    assert len(score.explanation) < 600


async def test_long_batches_let_other_work_go_on() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(count())
    await ScorerCore().score([ScoreItem("x", (ScorerCall("contains", "x"),))] * 1000)
    other.cancel()
    assert turns >= 10


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        (ScorerCheck("icontain", "x"), "there is no scorer 'icontain'; the nearest is 'icontains'"),
        (ScorerCheck("not-icontain", "x"), "there is no scorer 'not-icontain'; the nearest is 'not-icontains'"),
        (ScorerCheck("bleurt", "x"), "there is no scorer 'bleurt'; there are exact, contains, icontains"),
        (ScorerCheck("contains"), "the scorer 'contains' needs a value, and has none: a text that is not empty"),
        (ScorerCheck("not-contains", [1]), "the value of 'not-contains' must be a text that is not empty"),
        (
            ScorerCheck("max-words", "five"),
            "the value of 'max-words' must be a whole number of words, 0 or more, not",
        ),
        (
            ScorerCheck("exact", "x", {"ignorecase": True}),
            "has no setting 'ignorecase'; the nearest is 'ignore_case'",
        ),
        (ScorerCheck("max-words", 3, {"qqq": 1}), "the scorer 'max-words' has no setting 'qqq'; it has none"),
        (
            ScorerCheck("exact", "x", {"trim": "yes"}),
            "the setting 'trim' of 'exact' cannot be 'yes'. Whether white space",
        ),
        (ScorerCheck("json-path-equals", 1), "the scorer 'json-path-equals' needs the setting 'path'. A JSONPath"),
        (ScorerCheck("json-path-equals", 1, {"path": "$["}), "the path '$[' is not a JSONPath of RFC 9535"),
        (ScorerCheck("regex", "("), "the pattern '(' is not a valid RE2 expression: missing )"),
        (ScorerCheck("regex", r"(a)\1"), "RE2 has no back-references"),
        (ScorerCheck("regex", r"(?<!a)b"), "RE2 has no look-behind"),
        (ScorerCheck("json-schema", {"type": "x"}), "the schema is not a valid JSON Schema at /type"),
        (
            ScorerCheck("json-schema", {"$ref": "https://x/y"}),
            "the schema refers to 'https://x/y', and nothing is fetched",
        ),
        (ScorerCheck("numeric", "many"), "the value 'many' is not a number"),
    ],
)
async def test_check_says_what_is_wrong(check: ScorerCheck, problem: str) -> None:
    [[message]] = await ScorerCore().check([check])
    assert problem in message
    assert "\n" not in message


async def test_check_finds_everything_at_once() -> None:
    [problems] = await ScorerCore().check([ScorerCheck("contains", None, {"ignore_cas": True, "x": 1})])
    assert len(problems) == 3


@pytest.mark.parametrize(
    "check",
    [
        ScorerCheck("contains", "x"),
        ScorerCheck("json-valid"),
        ScorerCheck("exact", "{{ expected }}", value_is_template=True),
        ScorerCheck("regex", "(", value_is_template=True),
        ScorerCheck("max-words", "{{ input.n }}", value_is_template=True),
        ScorerCheck("json-path-equals", 0, {"path": "$.a"}),
        ScorerCheck("exact", False),
        ScorerCheck("numeric", "1,000"),
    ],
)
async def test_check_is_content_with_what_is_right(check: ScorerCheck) -> None:
    assert await ScorerCore().check([check]) == [[]]
