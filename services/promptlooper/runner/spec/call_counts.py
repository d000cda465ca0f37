"""How many calls an experiment takes, as far as that can be known before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from promptlooper.errors import Problem, TemplateError
from promptlooper.experiment import ExperimentSpec, InputRow, Pipeline, Stage
from promptlooper.runner.calls import Conversation
from promptlooper.runner.render import Renderer

_ROWS_COUNTED = 1_000  # the rest is taken to be like these
_OF_ANSWERS = frozenset({"stages", "prev_output"})


@dataclass(frozen=True, slots=True)
class CallCount:
    calls: int
    at_least: bool  # answers decide on some: there may be more


def counted(spec: ExperimentSpec, renderer: Renderer) -> CallCount:
    """One call a stage, or one an item of its `for_each`. More rounds of a call are not foreseen."""
    points, rows = max(1, len(spec.sweep)), max(1, len(spec.inputs))
    total, at_least = 0, False
    for pipeline in spec.pipelines:
        found = [items_of(spec, pipeline, index, renderer) for index in range(len(pipeline.stages))]
        total += len(pipeline.models) * points * spec.repeats * sum(round((each or 1) * rows) for each in found)
        at_least = at_least or None in found or any(_may_repeat(stage) for stage in pipeline.stages)
    return CallCount(total, at_least)


def items_of(spec: ExperimentSpec, pipeline: Pipeline, index: int, renderer: Renderer) -> float | None:
    """How many items a stage goes over, the mean of all rows; None where only earlier answers say that."""
    if not pipeline.stages[index].for_each:
        return 1
    rows = spread(spec.inputs, _ROWS_COUNTED)
    counts = [_items(spec, pipeline, index, row, renderer) for row in rows]
    known = [count for count in counts if count is not None]
    return sum(known) / len(known) if known else None


def stages_over_nothing(spec: ExperimentSpec, renderer: Renderer) -> Iterator[Problem]:
    """Of stages whose `for_each` fails in every run, as far as no earlier answer has a say in it."""
    if len(spec.inputs) > _ROWS_COUNTED:
        return
    for i, pipeline in enumerate(spec.pipelines):
        for j, stage in enumerate(pipeline.stages):
            if not stage.for_each or not _OF_ANSWERS.isdisjoint(renderer.references(stage.for_each).roots):
                continue
            faults = (_fault(spec, pipeline, j, row, renderer) for row in spec.inputs)
            if (first := next(faults, None)) and all(faults):
                yield Problem(f"pipelines[{i}].stages[{j}].for_each", f"{first}; so it is for every input")


def _fault(spec: ExperimentSpec, pipeline: Pipeline, index: int, row: InputRow, renderer: Renderer) -> str | None:
    try:
        Conversation(renderer, spec, pipeline.stages, row).items(index, ())
        return None
    except TemplateError as error:
        return error.message


def spread(rows: Sequence[InputRow], most: int) -> Sequence[InputRow]:
    """At most so many of the rows, from all over them."""
    return rows[:: max(1, -(-len(rows) // most))]


def _items(spec: ExperimentSpec, pipeline: Pipeline, index: int, row: InputRow, renderer: Renderer) -> int | None:
    try:
        return len(Conversation(renderer, spec, pipeline.stages, row).items(index, ()))
    except TemplateError:  # an earlier answer is missing, or this run will fail
        return None


def _may_repeat(stage: Stage) -> bool:
    return bool(stage.tool_results or stage.retries_on_invalid)
