"""Scorers that hold the output against a text."""

from __future__ import annotations

from typing import Any

from promptlooper.digest import canonical
from promptlooper.jsonvalue import JsonObject
from promptlooper.scorer.scorertype import NotJson, ScorerType, Subject, as_text, shown, yes_no
from promptlooper.scoring import ScoreValue

IGNORE_CASE: JsonObject = {
    "type": "boolean",
    "default": False,
    "description": "Whether upper and lower case count as the same. Default: false.",
}
TRIM: JsonObject = {
    "type": "boolean",
    "default": False,
    "description": "Whether white space around the output and around the value is left out. Default: false.",
}
_FRAGMENT: JsonObject = {
    "type": ["string", "number", "boolean"],
    "minLength": 1,
    "description": "a text that is not empty (a number or a boolean counts as its JSON text)",
}


def folded(text: str, settings: JsonObject) -> str:
    if settings:
        if settings.get("trim", False):
            text = text.strip()
        if settings.get("ignore_case", False):
            text = text.casefold()
    return text


def _is(subject: Subject, same: bool, value: Any) -> str:
    return f"The output is {shown(value)}." if same else f"The output is {shown(subject.text)}, not {shown(value)}."


def _exact(subject: Subject, value: Any, settings: JsonObject) -> ScoreValue:
    if not isinstance(value, str):
        try:
            same = canonical(subject.json()) == canonical(value)
            return yes_no(same, _is(subject, same, value))
        except NotJson:
            value = as_text(value)
    same = folded(subject.text, settings) == folded(value, settings)
    return yes_no(same, _is(subject, same, value))


def _contains(subject: Subject, value: Any, settings: JsonObject) -> ScoreValue:
    found = folded(as_text(value), settings) in folded(subject.text, settings)
    return yes_no(found, f"The output {'contains' if found else 'does not contain'} {shown(value)}.")


def _icontains(subject: Subject, value: Any, settings: JsonObject) -> ScoreValue:
    found = as_text(value).casefold() in subject.text.casefold()
    return yes_no(found, f"The output {'contains' if found else 'does not contain'} {shown(value)}, in any case.")


def _starts_with(subject: Subject, value: Any, settings: JsonObject) -> ScoreValue:
    starts = folded(subject.text, settings).startswith(folded(as_text(value), settings))
    return yes_no(starts, f"The output {'starts' if starts else 'does not start'} with {shown(value)}.")


SCORERS = (
    ScorerType(
        type="exact",
        description="1 if the output is the value, else 0. A value that is not text is compared as JSON where the "
        "output is JSON, so 42 is the same as the output '42' or '42.0'.",
        score=_exact,
        value_schema={
            "type": ["string", "number", "boolean", "array", "object"],
            "description": "a text or another JSON value that is not null",
        },
        settings={"ignore_case": IGNORE_CASE, "trim": TRIM},
    ),
    ScorerType(
        type="contains",
        description="1 if the value is somewhere in the output, else 0.",
        score=_contains,
        value_schema=_FRAGMENT,
        settings={"ignore_case": IGNORE_CASE},
    ),
    ScorerType(
        type="icontains",
        description="1 if the value is somewhere in the output, in upper or lower case, else 0.",
        score=_icontains,
        value_schema=_FRAGMENT,
    ),
    ScorerType(
        type="starts-with",
        description="1 if the output starts with the value, else 0.",
        score=_starts_with,
        value_schema=_FRAGMENT,
        settings={"ignore_case": IGNORE_CASE, "trim": TRIM},
    ),
)
