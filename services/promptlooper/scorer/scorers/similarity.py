"""How alike the output and a text are."""

from __future__ import annotations

from typing import Any

from rapidfuzz.distance import Levenshtein

from promptlooper.jsonvalue import JsonObject
from promptlooper.scorer.scorers.text import IGNORE_CASE, TRIM, folded
from promptlooper.scorer.scorertype import ScorerType, ScoringFailed, Subject, as_text, shown
from promptlooper.scoring import ScoreValue

_MAX_CHARACTERS = 50_000  # of each text: the time grows with the product of the two


def _levenshtein(subject: Subject, value: Any, settings: JsonObject) -> ScoreValue:
    output, wanted = folded(subject.text, settings), folded(as_text(value), settings)
    longest = max(len(output), len(wanted))
    if longest > _MAX_CHARACTERS:
        raise ScoringFailed(
            f"a text of {longest} characters is too long to compare; at most {_MAX_CHARACTERS} are allowed"
        )
    similarity = Levenshtein.normalized_similarity(output, wanted)
    return ScoreValue(similarity, f"The output is {similarity:.0%} like {shown(value)}.")


SCORERS = (
    ScorerType(
        type="levenshtein",
        description="1 - d / n, where d is how many characters must be put in, taken out or replaced to make the "
        "output the value, and n is the length of the longer one: 1 for the same text, 0 for nothing in common.",
        score=_levenshtein,
        value_schema={
            "type": ["string", "number", "boolean"],
            "description": "a text (a number or a boolean counts as its JSON text)",
        },
        settings={"ignore_case": IGNORE_CASE, "trim": TRIM},
    ),
)
