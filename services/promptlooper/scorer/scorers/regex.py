"""Regular expressions by RE2: the time is linear in the output, whatever the pattern."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import re2

from promptlooper.jsonvalue import JsonObject
from promptlooper.scorer.scorers.text import IGNORE_CASE
from promptlooper.scorer.scorertype import ScorerType, ScoringFailed, Subject, shown, yes_no
from promptlooper.scoring import ScoreValue

MAX_PATTERN = 1024
_MAX_MEMORY = 1 << 20  # bytes that one compiled pattern may take

# What `re` has and RE2 has not, named: RE2 itself says "invalid perl operator: (?=".
_MISSING = (
    (re.compile(r"\(\?(?:=|!)"), "look-ahead"),
    (re.compile(r"\(\?<(?:=|!)"), "look-behind"),
    (re.compile(r"\(\?>"), "atomic groups"),
    (re.compile(r"\(\?\(|\(\?P="), "conditions and back-references"),
    (re.compile(r"\(\?#"), "comments"),
    (re.compile(r"\\[1-9]"), "back-references"),
    (re.compile(r"[*+?}]\+"), "possessive repeats"),
    (re.compile(r"\\Z"), r"\Z (the end of the text is \z)"),
)


@lru_cache(maxsize=256)
def _compiled(pattern: str, ignore_case: bool) -> Any:
    if len(pattern) > MAX_PATTERN:
        raise ScoringFailed(f"the pattern has {len(pattern)} characters; at most {MAX_PATTERN} are allowed")
    options = re2.Options()
    options.log_errors = False  # else RE2 writes to stderr itself
    options.max_mem = _MAX_MEMORY
    options.case_sensitive = not ignore_case
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0] if error.args else "not a regular expression"
        reason = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        missing = next((name for form, name in _MISSING if form.search(pattern)), None)
        hint = f"; RE2 has no {missing}" if missing else ""
        raise ScoringFailed(f"the pattern {shown(pattern)} is not a valid RE2 expression: {reason}{hint}") from error


def _regex(subject: Subject, value: Any, settings: JsonObject) -> ScoreValue:
    match = _compiled(value, bool(settings.get("ignore_case", False))).search(subject.text)
    if match is None:
        return yes_no(False, f"The output has no match for {shown(value)}.")
    return yes_no(True, f"The output has {shown(match.group())}, which matches {shown(value)}.")


def _problems(value: Any, settings: JsonObject) -> list[str]:
    if value is None:
        return []
    try:
        _compiled(value, False)
    except ScoringFailed as failure:
        return [str(failure)]
    return []


SCORERS = (
    ScorerType(
        type="regex",
        description="1 if the pattern matches somewhere in the output, else 0. The syntax is RE2's; (?i), (?m) and "
        "(?s) work, and ^ and $ tie the pattern to the ends.",
        score=_regex,
        value_schema={
            "type": "string",
            "minLength": 1,
            "description": f"a regular expression of at most {MAX_PATTERN} characters",
        },
        settings={"ignore_case": IGNORE_CASE},
        problems=_problems,
    ),
)
