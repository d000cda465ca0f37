"""Scorers of an experiment file in their normal form."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from promptlooper.document import Path
from promptlooper.experiment import ScorerSpec
from promptlooper.jsonvalue import Json
from promptlooper.runner.spec.forms import Form
from promptlooper.runner.spec.problems import FilePosition, nearest
from promptlooper.runner.spec.values import noun

SCORER_TYPES = (
    "exact",
    "contains",
    "icontains",
    "starts-with",
    "regex",
    "json-valid",
    "json-schema",
    "json-path-equals",
    "numeric",
    "levenshtein",
    "min-words",
    "max-words",
    "latency",
    "cost",
)
"""The types that the Scorer comes with."""

_COMMON = ("type", "name", "value", "weight", "threshold", "output")
_LATER = ("when", "stage", "model", "params")


class ScorerReader:
    def __init__(self, form: Form, types: Collection[str]) -> None:
        self._form = form
        self._notes = form.notes
        self._types = frozenset(types)
        self._names = sorted({*types, *(f"not-{name}" for name in types)})

    def scorers(self, value: Json) -> tuple[ScorerSpec, ...]:
        found: list[ScorerSpec] = []
        for index, entry in enumerate(self._form.items(("scorers",), value, "scorers") or []):
            field = f"scorers[{len(found)}]"
            self._notes.came_from(field, ("scorers", index))
            scorer = self._scorer(field, ("scorers", index), entry)
            if scorer is None:
                names = self._meant_names(entry)
                self._notes.lost_scorers |= names
                if not names:
                    self._notes.unread.add("scorers")
            else:
                found.append(scorer)
        return tuple(found)

    def _meant_names(self, entry: Json) -> set[str]:
        """What a scorer that can't be read would be called when it is right; empty where nobody can say."""
        if isinstance(entry, dict) and "name" in entry:
            return {entry["name"]} if isinstance(entry["name"], str) else set()
        said = [entry] if isinstance(entry, str) else []
        if isinstance(entry, dict):
            said = [entry["type"]] if "type" in entry else [key for key in entry if key not in (*_COMMON, *_LATER)]
        types = {self._meant_type(one) for one in said if isinstance(one, str)}
        return set() if None in types else {name for name in types if name is not None}

    def _meant_type(self, said: str) -> str | None:
        near = difflib.get_close_matches(said, self._names, 1)
        return said if self._known(said) else near[0] if near else None

    def _known(self, name: str) -> bool:
        return name.removeprefix("not-") in self._types

    def _scorer(self, field: str, path: Path, entry: Json) -> ScorerSpec | None:
        if isinstance(entry, str):
            entry = {"type": entry}
        if not isinstance(entry, dict):
            self._notes.add(path, f"a scorer must be a type or a mapping, not {noun(entry)}")
            return None
        found = self._type_and_value(path, entry)
        if found is None:
            return None
        scorer_type, value_key = found
        rest: dict[str, Any] = dict(entry)
        rest.pop("type", None)
        value = rest.pop(value_key, None)
        for key in _LATER:
            if key in rest:
                self._notes.add((*path, key), f"{key!r} is not available yet")
                del rest[key]
        name = self._form.text((*path, "name"), rest.pop("name"), "name") if "name" in rest else scorer_type
        weight = self._form.number((*path, "weight"), rest.pop("weight", 1), "weight")
        threshold = rest.pop("threshold", None)
        if threshold is not None:
            threshold = self._form.number((*path, "threshold"), threshold, "threshold")
        output = rest.pop("output", None)
        text = self._form.text_or_file((*path, "output"), output, "output") if output is not None else None
        if text is not None:
            self._notes.came_from(f"{field}.output", text.origin)
        self._notes.came_from(f"{field}.value", (*path, value_key))
        self._notes.came_from(f"{field}.settings", path)
        said = len(self._notes.problems)
        read_value = self._value(field, (*path, value_key), scorer_type, value)
        if len(self._notes.problems) > said:
            self._notes.unread.add(f"{field}.value")
        return ScorerSpec(
            name=scorer_type if name is None else name,
            type=scorer_type,
            value=read_value,
            weight=1.0 if weight is None else weight,
            threshold=threshold,
            output="" if text is None else text.text,
            settings=rest,
        )

    def _type_and_value(self, path: Path, entry: dict[str, Json]) -> tuple[str, str] | None:
        """The type, and the key that holds the value."""
        if "type" in entry:
            scorer_type = self._form.text((*path, "type"), entry["type"], "type")
            if scorer_type is not None and not self._known(scorer_type):
                self._unknown((*path, "type") if len(entry) > 1 else path, scorer_type)
                return None
            return None if scorer_type is None else (scorer_type, "value")
        types = [key for key in entry if self._known(key)]
        if len(types) == 1:
            if "value" in entry:
                self._notes.add((*path, "value"), f"{types[0]!r} holds the value already; remove 'value'")
                return None
            return types[0], types[0]
        if types:
            self._notes.add(path, f"a scorer has one type; this one has {' and '.join(map(repr, types))}")
            return None
        others = [key for key in entry if key not in (*_COMMON, *_LATER)]
        if others:
            self._unknown((*path, others[0]), others[0])
        else:
            self._notes.add(path, "a scorer needs a type")
        return None

    def _unknown(self, path: Path, name: str) -> None:
        near = nearest(name, self._names) or f"; there are {', '.join(sorted(self._types))}, and not- before any"
        self._notes.add(path, f"{name!r} is not a type of scorer{near}")

    def _value(self, field: str, path: Path, scorer_type: str, value: Json) -> Json:
        name = self._form.file_name(value)
        if name is None:
            return value
        self._notes.came_from(f"{field}.value", FilePosition(self._form.folder.shown(str(name)), 1))
        if scorer_type.removeprefix("not-") == "json-schema":
            return self._form.json_file(path, name, "value")
        text = self._form.file(path, name, "value", prompt=True)
        return None if text is None else text.text
