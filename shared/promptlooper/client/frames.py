"""Runs as tables: the columns of `.csv` files, with types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from promptlooper.clients.packages import needed
from promptlooper.experiment import ExperimentSummary
from promptlooper.flat_rows import CsvLayout, cell, columns_of, value_at
from promptlooper.rows import run_row
from promptlooper.run import Run

if TYPE_CHECKING:
    import pandas
    import pyarrow


ARROW, PANDAS = ("pyarrow", "A table of Arrow", "pyarrow"), ("pandas", "A frame of pandas", "pandas")


class Kind(Enum):
    """What a column holds; None is in all of them."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    TIME = "time"


_INTEGERS = (
    *("schema_version", "generation", "run_index", "input_index", "repeat", "error_stage_index", "error_attempts"),
    *("tokens_in", "tokens_out", "tokens_reasoning", "tokens_cached_in", "latency_ms", "duration_ms", "attempts"),
)
_NUMBERS = ("score", "cost_usd", "judge_cost_usd", "cost_saved_usd")
_KINDS = {
    **dict.fromkeys(_INTEGERS, Kind.INTEGER),
    **dict.fromkeys(_NUMBERS, Kind.NUMBER),
    **dict.fromkeys(("passed", "cached", "error_retryable"), Kind.BOOLEAN),
    **dict.fromkeys(("created_at", "started_at", "completed_at"), Kind.TIME),
}
"""Of the columns that every table has. What a file gives freely has the kind of its values."""
_FREE = ("params", "input", "expected")
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Column:
    kind: Kind
    values: list[Any]


class Table:
    """Collects runs, and then has their columns. Texts of stages are left out, as in `.csv` files."""

    def __init__(self, summary: ExperimentSummary, package: tuple[str, str, str]) -> None:
        """Raises MissingPackage without the `package` (ARROW, PANDAS), before runs are read."""
        needed(*package)
        self._columns = columns_of(summary)
        self._rows: list[Mapping[str, Any]] = []

    def add(self, run: Run) -> None:
        row = run_row(run)
        del row["stages"]
        self._columns.saw_input(run.input)
        self._rows.append(row)

    def columns(self) -> dict[str, Column]:
        layout = CsvLayout(self._columns)
        return {
            name: _column(path, [value_at(row, path) for row in self._rows])
            for name, path in zip(layout.header, layout.paths, strict=True)
        }

    def to_arrow(self) -> pyarrow.Table:
        arrow = needed(*ARROW)
        types = {
            Kind.TEXT: arrow.string(),
            Kind.INTEGER: arrow.int64(),
            Kind.NUMBER: arrow.float64(),
            Kind.BOOLEAN: arrow.bool_(),
            Kind.TIME: arrow.timestamp("us", "UTC"),
        }
        columns = self.columns()
        return arrow.table({name: arrow.array(column.values, types[column.kind]) for name, column in columns.items()})

    def to_pandas(self) -> pandas.DataFrame:
        frames = needed(*PANDAS)
        types = {
            Kind.TEXT: "object",
            Kind.INTEGER: "Int64",
            Kind.NUMBER: "float64",
            Kind.BOOLEAN: "boolean",
            Kind.TIME: "datetime64[us, UTC]",
        }
        columns = self.columns()
        series = {name: frames.Series(column.values, dtype=types[column.kind]) for name, column in columns.items()}
        return frames.DataFrame(series)


def _column(path: Sequence[str], values: Sequence[Any]) -> Column:
    kind = Kind.NUMBER if path[0] == "scores" and path[-1] == "value" else _KINDS.get("_".join(path))
    if path[0] in _FREE:
        kind = _kind_of(values)
    match kind:
        case None | Kind.TEXT:
            return Column(Kind.TEXT, [None if value is None else cell(value) for value in values])
        case Kind.TIME:
            return Column(kind, [None if value is None else datetime.fromisoformat(value) for value in values])
        case Kind.NUMBER:
            return Column(kind, [None if value is None else float(value) for value in values])
    return Column(kind, list(values))


def _kind_of(values: Sequence[Any]) -> Kind:
    """That of all values; where they differ, or are lists or mappings, text: JSON, but for what is text already."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return Kind.BOOLEAN
    if kinds == {int} and all(value in _INT64 for value in values if value is not None):
        return Kind.INTEGER
    return Kind.NUMBER if kinds in ({float}, {int, float}) else Kind.TEXT
