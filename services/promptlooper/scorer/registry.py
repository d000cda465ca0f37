"""The scorer types by name, and the core that scores with them."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import jsonschema_rs

from promptlooper.jsonvalue import Json, JsonObject
from promptlooper.scorer.scorers import length, number, regex, similarity, spending, structure, text
from promptlooper.scorer.scorertype import SHOWN, ScorerType, ScoringFailed, Subject, shown
from promptlooper.scoring import ScoreItem, ScorerCall, ScorerCheck, ScorerInfo, ScoreValue
from promptlooper.tracing import NOTHING, child

log = logging.getLogger(__name__)

BUILT_IN: tuple[ScorerType, ...] = (
    *text.SCORERS,
    *regex.SCORERS,
    *structure.SCORERS,
    *number.SCORERS,
    *similarity.SCORERS,
    *length.SCORERS,
    *spending.SCORERS,
)
NEGATION = "not-"
_CHUNK = 50  # items between two chances for other work on the event loop


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: ScorerType
    negated: bool
    value_validator: jsonschema_rs.Validator
    settings_validator: jsonschema_rs.Validator


class ScorerCore:
    """Scores items one after the other, without waiting for anything."""

    def __init__(self, types: Iterable[ScorerType] = BUILT_IN) -> None:
        self._entries: dict[str, _Entry] = {}
        self.scored: Counter[tuple[str, str]] = Counter()  # by type ("unknown" for none of ours), and "ok" or "error"
        for kind in types:
            of_value = jsonschema_rs.validator_for(dict(kind.value_schema))
            of_settings = jsonschema_rs.validator_for(kind.settings_schema)
            self._entries[kind.type] = _Entry(kind, False, of_value, of_settings)
            self._entries[NEGATION + kind.type] = _Entry(kind, True, of_value, of_settings)

    async def score(self, items: Sequence[ScoreItem]) -> list[list[ScoreValue]]:
        scores: list[list[ScoreValue]] = []
        for start in range(0, len(items), _CHUNK):
            if start:
                await asyncio.sleep(0)
            for item in items[start : start + _CHUNK]:
                subject = Subject(item.output, item.latency_ms, item.cost_nanousd)
                with child("score", item.traceparent, "server") if item.traceparent else NOTHING as scoring:
                    scores.append([self._scored(call, subject) for call in item.calls])
                    if scoring:
                        scoring.set({"promptlooper.scorers": [call.type for call in item.calls]})
        return scores

    async def check(self, scorers: Sequence[ScorerCheck]) -> list[list[str]]:
        return [self._problems(scorer) for scorer in scorers]

    async def list_scorers(self) -> list[ScorerInfo]:
        return [
            ScorerInfo(
                type=entry.kind.type,
                description=entry.kind.description,
                value_schema=entry.kind.value_schema,
                settings_schema=entry.kind.settings_schema,
                value_required=entry.kind.value_required,
            )
            for entry in sorted(self._entries.values(), key=lambda entry: entry.kind.type)
            if not entry.negated
        ]

    def _scored(self, call: ScorerCall, subject: Subject) -> ScoreValue:
        value = self._value(call, subject)
        kind = call.type if call.type in self._entries else "unknown"
        self.scored[kind, "ok" if value.error is None else "error"] += 1
        return value

    def _value(self, call: ScorerCall, subject: Subject) -> ScoreValue:
        entry = self._entries.get(call.type)
        if entry is None:
            return ScoreValue(None, error=self._unknown(call.type))
        try:
            score = _score(entry, call, subject)
        except ScoringFailed as failure:
            return ScoreValue(None, error=str(failure))
        except Exception as error:  # a scorer's fault is that score's error and stops nothing else
            log.warning("scorer %r raised %s", call.type, type(error).__name__)
            what = f"{type(error).__name__}: {str(error)[:SHOWN]}"
            return ScoreValue(None, error=f"the scorer {call.type!r} failed: {what}")
        return _bounded(score, entry.negated)

    def _unknown(self, wanted: str) -> str:
        near = get_close_matches(wanted, self._entries, n=1)
        if near:
            return f"there is no scorer {wanted!r}; the nearest is {near[0]!r}"
        known = ", ".join(name for name, entry in self._entries.items() if not entry.negated)
        return f"there is no scorer {wanted!r}; there are {known}, each also with {NEGATION!r} before it"

    def _problems(self, scorer: ScorerCheck) -> list[str]:
        entry = self._entries.get(scorer.type)
        if entry is None:
            return [self._unknown(scorer.type)]
        of_value = None if scorer.value_is_template else _value_problem(entry, scorer.type, scorer.value)
        problems = [of_value] if of_value else []
        of_settings = _settings_problems(entry, scorer.type, scorer.settings)
        if of_settings:
            return problems + of_settings
        known_value = None if scorer.value_is_template or of_value else scorer.value
        return problems + entry.kind.problems(known_value, scorer.settings)


def _score(entry: _Entry, call: ScorerCall, subject: Subject) -> ScoreValue:
    if problem := _value_problem(entry, call.type, call.value):
        raise ScoringFailed(problem)
    needs_check = call.settings or entry.kind.settings_required
    if needs_check and not entry.settings_validator.is_valid(dict(call.settings)):
        raise ScoringFailed("; ".join(_settings_problems(entry, call.type, call.settings)))
    if call.output is not None:
        subject = Subject(call.output, subject.latency_ms, subject.cost_nanousd)
    return entry.kind.score(subject, call.value, call.settings)


def _value_problem(entry: _Entry, called: str, value: Json) -> str | None:
    if value is None and entry.kind.value_required:
        return f"the scorer {called!r} needs a value, and has none: {entry.kind.value_schema['description']}"
    if value is None or entry.value_validator.is_valid(value):
        return None
    if entry.kind.value_schema.get("type") == "null":
        return f"the scorer {called!r} takes no value, and has {shown(value)}"
    return f"the value of {called!r} must be {entry.kind.value_schema['description']}, not {shown(value)}"


def _settings_problems(entry: _Entry, called: str, settings: JsonObject) -> list[str]:
    known = entry.kind.settings
    problems = []
    for name, value in settings.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            has = f"the nearest is {near[0]!r}" if near else f"it has {', '.join(map(repr, known)) or 'none'}"
            problems.append(f"the scorer {called!r} has no setting {name!r}; {has}")
        elif not jsonschema_rs.is_valid(dict(known[name]), value):
            problems.append(
                f"the setting {name!r} of {called!r} cannot be {shown(value)}. {known[name]['description']}"
            )
    problems += [
        f"the scorer {called!r} needs the setting {name!r}. {known[name]['description']}"
        for name in entry.kind.settings_required
        if name not in settings
    ]
    return problems


def _bounded(score: ScoreValue, negated: bool) -> ScoreValue:
    if score.value is None:
        return score
    if not math.isfinite(score.value):
        error = f"the scorer gave {score.value}, which is not a score"
        return ScoreValue(None, score.explanation, error, score.metadata)
    value = min(1.0, max(0.0, score.value))
    if negated:
        value = 1.0 - value
    return score if value == score.value else ScoreValue(value, score.explanation, None, score.metadata)
