"""Flat rows, as in `.csv` files and frames, with columns that are fixed before the first row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from promptlooper.experiment import ExperimentSummary
from promptlooper.jsonvalue import json_text
from promptlooper.rows import ROW_KEYS

_ERROR_KEYS = ("reason", "message", "stage_index", "stage", "attempts", "retryable")


@dataclass(slots=True)
class CsvColumns:
    """Which columns there are: the free names behind `param_*`, `input_<key>` and `score_<name>`, in order.

    `plain_input` says that some input is neither null nor a mapping with keys, and needs the column `input`.
    """

    params: dict[str, None] = field(default_factory=dict)
    input_keys: dict[str, None] = field(default_factory=dict)
    scores: dict[str, None] = field(default_factory=dict)
    plain_input: bool = False

    def saw_input(self, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            self.input_keys.update(dict.fromkeys(value))
        elif value is not None:
            self.plain_input = True


def columns_of(summary: ExperimentSummary) -> CsvColumns:
    """Those of the parameters and scorers; the inputs are still to be seen."""
    columns = CsvColumns()
    for variant in summary.variants:
        columns.params.update(dict.fromkeys(variant.params))
        columns.scores.update((score.name, None) for score in variant.scores)
    return columns


# Keys of a row that are spread over several columns; `stages` is left out, because it does not fit a flat row.
def _paths(columns: CsvColumns) -> Iterator[tuple[str, tuple[str, ...]]]:
    for key in ROW_KEYS:
        if key == "params":
            yield from ((f"param_{name}", ("params", name)) for name in columns.params)
        elif key == "input":
            if columns.plain_input:
                yield "input", ("input",)
            yield from ((f"input_{name}", ("input", name)) for name in columns.input_keys)
        elif key == "scores":
            for name in columns.scores:
                yield f"score_{name}", ("scores", name, "value")
                yield f"score_{name}_error", ("scores", name, "error")
        elif key == "error":
            yield from ((f"error_{part}", ("error", part)) for part in _ERROR_KEYS)
        elif key != "stages":
            yield key, (key,)


class CsvLayout:
    """Header and cells. `paths` say where in a row a column's values are."""

    def __init__(self, columns: CsvColumns) -> None:
        paths = list(_paths(columns))
        self.header = _unique([name.replace("-", "_") for name, _ in paths])
        self.paths = [path for _, path in paths]

    def cells(self, row: Mapping[str, Any]) -> list[str]:
        return [cell(value_at(row, path)) for path in self.paths]


def _unique(names: Sequence[str]) -> list[str]:
    """Two names may fall together when `-` becomes `_`: the later one gets a number."""
    taken: set[str] = set()
    unique = []
    for name in names:
        candidate, n = name, 1
        while candidate in taken:
            n += 1
            candidate = f"{name}_{n}"
        taken.add(candidate)
        unique.append(candidate)
    return unique


def value_at(row: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    if path == ("input",) and isinstance(row["input"], Mapping) and row["input"]:
        return None  # it stands in the columns of its keys
    value: Any = row
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def cell(value: Any) -> str:
    """A value as text: itself, or as JSON; None is empty."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json_text(value)
