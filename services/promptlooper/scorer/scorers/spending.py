"""What outputs took: time and money."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from promptlooper.jsonvalue import JsonObject
from promptlooper.scorer.scorertype import ScorerType, ScoringFailed, Subject, yes_no
from promptlooper.scoring import ScoreValue

_NANO = 10**9


def _latency(subject: Subject, value: Any, settings: JsonObject) -> ScoreValue:
    return yes_no(subject.latency_ms <= value, f"The output took {subject.latency_ms} ms; at most {value} were wanted.")


def _cost(subject: Subject, value: Any, settings: JsonObject) -> ScoreValue:
    if subject.cost_nanousd is None:
        raise ScoringFailed("the cost of the output is not known: the price table has no price for its model")
    most = Decimal(str(value)) * _NANO  # a float product could fall below the price it stands for
    cost = Decimal(subject.cost_nanousd) / _NANO
    return yes_no(subject.cost_nanousd <= most, f"The output cost ${cost.normalize():f}; at most ${value} was wanted.")


SCORERS = (
    ScorerType(
        type="latency",
        description="1 if the models took at most so many milliseconds for the output, else 0. A cached answer counts "
        "with the time of the original.",
        score=_latency,
        value_schema={"type": "number", "minimum": 0, "description": "a number of milliseconds, 0 or more"},
    ),
    ScorerType(
        type="cost",
        description="1 if the output cost at most so many US dollars, else 0. An unknown price is an error, not 0.",
        score=_cost,
        value_schema={"type": "number", "minimum": 0, "description": "a number of US dollars, 0 or more"},
    ),
)
