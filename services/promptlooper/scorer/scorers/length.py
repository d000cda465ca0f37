"""How long outputs are."""

from __future__ import annotations

from typing import Any

from promptlooper.jsonvalue import JsonObject
from promptlooper.scorer.scorertype import ScorerType, Subject, yes_no
from promptlooper.scoring import ScoreValue

_WORDS: JsonObject = {"type": "integer", "minimum": 0, "description": "a whole number of words, 0 or more"}


def _counted(subject: Subject) -> tuple[int, str]:
    words = len(subject.text.split())
    return words, f"The output has {words} word{'' if words == 1 else 's'}"


def _min_words(subject: Subject, value: Any, settings: JsonObject) -> ScoreValue:
    words, sentence = _counted(subject)
    return yes_no(words >= value, f"{sentence}; at least {value} were wanted.")


def _max_words(subject: Subject, value: Any, settings: JsonObject) -> ScoreValue:
    words, sentence = _counted(subject)
    return yes_no(words <= value, f"{sentence}; at most {value} were wanted.")


SCORERS = (
    ScorerType(
        type="min-words",
        description="1 if the output has at least so many words, else 0. Words are what white space parts.",
        score=_min_words,
        value_schema=_WORDS,
    ),
    ScorerType(
        type="max-words",
        description="1 if the output has at most so many words, else 0. Words are what white space parts.",
        score=_max_words,
        value_schema=_WORDS,
    ),
)
