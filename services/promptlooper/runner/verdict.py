"""From what scorers say to what a run is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

from promptlooper.experiment import ScorerSpec
from promptlooper.run import Score
from promptlooper.scoring import ScoreValue


def score_of(spec: ScorerSpec, said: ScoreValue) -> Score:
    """A score with its verdict. Scorers may be anyone's: values are clamped to 0..1, NaN and infinities are errors."""
    value, error = said.value, said.error
    if error is None and (value is None or not math.isfinite(value)):
        value, error = None, f"the scorer gave {value!r}, which is not a number from 0 to 1"
    if error is not None:
        value = None
    if value is not None:
        value = min(1.0, max(0.0, value))
    return Score(
        name=spec.name,
        type=spec.type,
        value=value,
        passed=None if spec.threshold is None or value is None else value >= spec.threshold,
        weight=spec.weight,
        explanation=said.explanation,
        error=error,
        metadata=said.metadata,
    )


def run_score(scores: Sequence[Score]) -> float | None:
    """Weighted mean of the scores that have a value; None if none has, or their weights sum to 0."""
    weighted = [(s.value * s.weight, s.weight) for s in scores if s.value is not None]
    weight = sum(w for _, w in weighted)
    return sum(v for v, _ in weighted) / weight if weight else None


def run_passed(specs: Sequence[ScorerSpec], scores: Sequence[Score]) -> bool | None:
    """No threshold missed and no thresholded scorer in error; None where no scorer has a threshold."""
    judged = [s for spec, s in zip(specs, scores, strict=True) if spec.threshold is not None]
    return all(s.passed is True for s in judged) if judged else None
