import math

import pytest

from promptlooper.experiment import ScorerSpec
from promptlooper.run import Score
from promptlooper.runner.verdict import run_passed, run_score, score_of
from promptlooper.scoring import ScoreValue

SPEC = ScorerSpec("brief", "max-words", 5, threshold=0.5)


@pytest.mark.parametrize(("said", "value"), [(0.25, 0.25), (1.7, 1.0), (-3.0, 0.0)])
def test_values_are_clamped_to_0_and_1(said: float, value: float) -> None:
    assert score_of(SPEC, ScoreValue(said)).value == value


@pytest.mark.parametrize("said", [math.nan, math.inf, -math.inf, None])
def test_what_is_no_number_is_an_error_and_no_value(said: float | None) -> None:
    score = score_of(SPEC, ScoreValue(said))
    assert score.value is None
    assert score.passed is None
    assert "not a number from 0 to 1" in (score.error or "")


def test_a_failed_scorer_keeps_its_reason_and_has_no_value() -> None:
    score = score_of(SPEC, ScoreValue(0.9, error="boom"))
    assert (score.value, score.error, score.passed) == (None, "boom", None)


def test_without_a_threshold_there_is_no_verdict() -> None:
    assert score_of(ScorerSpec("a", "exact"), ScoreValue(1.0)).passed is None


def test_the_run_score_is_the_weighted_mean_of_what_has_a_value() -> None:
    scores = [
        Score("a", "t", 1.0, None, 3.0),
        Score("b", "t", 0.0, None, 1.0),
        Score("c", "t", None, None, 9.0, error="x"),
    ]
    assert run_score(scores) == 0.75


@pytest.mark.parametrize("scores", [[], [Score("a", "t", None, None, error="x")], [Score("a", "t", 1.0, None, 0.0)]])
def test_without_weighted_values_there_is_no_run_score(scores: list[Score]) -> None:
    assert run_score(scores) is None


def test_a_thresholded_scorer_in_error_does_not_pass() -> None:
    specs = [ScorerSpec("a", "t", threshold=0.5), ScorerSpec("b", "t")]
    free = Score("b", "t", 0.0, None)
    assert run_passed(specs, [Score("a", "t", 0.5, True), free]) is True
    assert run_passed(specs, [Score("a", "t", 0.4, False), free]) is False
    assert run_passed(specs, [Score("a", "t", None, None, error="x"), free]) is False
    assert run_passed([specs[1]], [free]) is None
