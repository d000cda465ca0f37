"""Numbers in outputs."""

from __future__ import annotations

import re
from decimal import Decimal, DecimalException
from typing import Any

from promptlooper.jsonvalue import JsonObject
from promptlooper.scorer.scorertype import ScorerType, ScoringFailed, Subject, shown
from promptlooper.scoring import ScoreValue

# Begins with what must be there, a digit, so that the search skips to it. 1,234,567 is one number; 1,23 are two.
_DIGITS = re.compile(r"\d(?:\d{0,2}(?:,\d{3})+(?![\d,])|\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?", re.ASCII)
_SIGNS = "-+−"
_MAX_EXPONENT = 400  # beyond what a float holds; keeps the arithmetic small


def _decimal(text: str) -> Decimal:
    """Raises ScoringFailed where the text is no number, or one too large."""
    try:
        number = Decimal(text.replace(",", "").replace("−", "-").strip())
    except DecimalException as error:
        raise ScoringFailed(f"{shown(text)} is not a number") from error
    if not number.is_finite() or abs(number.adjusted()) > _MAX_EXPONENT:
        raise ScoringFailed(f"{shown(text)} is not a number that can be compared")
    return number


def _whole(text: str, match: re.Match[str]) -> str:
    """The number with what may stand before its digits: the point of .5, and a sign.

    A sign counts only where no word or number ends before it: in 2024-05 the 5 is not negative.
    """
    start = match.start()
    if text[start - 1 : start] == "." and not text[start - 2 : start - 1].isdigit():
        start -= 1
    if start and text[start - 1] in _SIGNS:
        before = text[start - 2 : start - 1]
        if not (before.isalnum() or before in ("_", ".", ")")):
            start -= 1
    return text[start : match.end()]


def _wanted(value: Any) -> Decimal:
    if not isinstance(value, str):
        return _decimal(str(value))  # of a float the shortest text that means it: 0.1 stays 0.1
    text = value.strip()
    match = _DIGITS.search(text)
    if match is None or _whole(text, match) != text:
        raise ScoringFailed(f"the value {shown(value)} is not a number")
    return _decimal(text)


def _numeric(subject: Subject, value: Any, settings: JsonObject) -> ScoreValue:
    wanted = _wanted(value)
    tolerance = _decimal(str(settings.get("tolerance", 0)))
    take = settings.get("take", "last")
    match = None
    for match in _DIGITS.finditer(subject.text):  # noqa: B007
        if take == "first":
            break
    if match is None:
        return ScoreValue(0.0, f"The output has no number; {shown(value)} was wanted.")
    found = _whole(subject.text, match)
    got = _decimal(found)
    close = abs(got - wanted) <= tolerance
    within = f" (tolerance {settings['tolerance']})" if tolerance else ""
    return ScoreValue(
        1.0 if close else 0.0,
        f"The {take} number of the output is {found[:50]}; {shown(value)} was wanted{within}.",
        metadata={"number": float(got)},
    )


def _problems(value: Any, settings: JsonObject) -> list[str]:
    if value is None:
        return []
    try:
        _wanted(value)
    except ScoringFailed as failure:
        return [str(failure)]
    return []


SCORERS = (
    ScorerType(
        type="numeric",
        description="1 if a number in the output equals the value, give or take the tolerance, else 0. Numbers may be "
        "written 1,234.5, -3 or 6e23; a unit or a currency sign beside them is left out.",
        score=_numeric,
        value_schema={"type": ["number", "string"], "minLength": 1, "description": "a number, or a text that is one"},
        settings={
            "tolerance": {
                "type": "number",
                "minimum": 0,
                "default": 0,
                "description": "How far the number may be from the value. Default: 0.",
            },
            "take": {
                "enum": ["last", "first"],
                "default": "last",
                "description": "Which number of the output counts: last or first. Default: last.",
            },
        },
        problems=_problems,
    ),
)
