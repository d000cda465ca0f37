"""The grid: variants of a spec, and the cell of each run. Order: input, repeat, pipeline, model, sweep point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from promptlooper.digest import sha256_hex
from promptlooper.experiment import ExperimentSpec, ModelEntry, Pipeline, Stage
from promptlooper.jsonvalue import Json, JsonObject, json_text
from promptlooper.runner.spec.normal import entry_to_json, stage_to_json


@dataclass(frozen=True, slots=True)
class Variant:
    """Pipeline × model entry × sweep point: what is compared."""

    variant_id: str  # 12 hex of the SHA-256 of its normal form
    label: str  # direct · gpt5-low · temperature=0.7
    pipeline: Pipeline
    model_entry: ModelEntry
    point: JsonObject  # of the sweep
    params: JsonObject  # params < model entry < sweep, without what is not sent
    base: JsonObject  # the experiment's params


@dataclass(frozen=True, slots=True)
class Shape:
    """How many of each there are; runs are counted through in grid order from 0."""

    inputs: int
    repeats: int
    variants: int

    @property
    def total(self) -> int:
        return self.inputs * self.repeats * self.variants


@dataclass(frozen=True, slots=True)
class Cell:
    run_index: int
    input_index: int
    repeat: int
    variant_index: int


def _sent(*layers: Mapping[str, Json]) -> dict[str, Json]:
    merged: dict[str, Json] = {}
    for layer in layers:
        merged.update(layer)
    return {name: value for name, value in merged.items() if value is not None}


def _label(pipeline: Pipeline, entry: ModelEntry, point: JsonObject) -> str:
    settings = (f"{name}={value if isinstance(value, str) else json_text(value)}" for name, value in point.items())
    return " · ".join((pipeline.name, entry.name, *settings))


def variants(spec: ExperimentSpec) -> tuple[Variant, ...]:
    found: list[Variant] = []
    for pipeline in spec.pipelines:
        stages = [stage_to_json(stage) for stage in pipeline.stages]
        for entry in pipeline.models:
            for point in spec.sweep or ({},):
                form = {
                    "pipeline": {"name": pipeline.name, "stages": stages},
                    "model": entry_to_json(entry),
                    "params": spec.params,
                    "point": point,
                }
                found.append(
                    Variant(
                        variant_id=sha256_hex(form)[:12],
                        label=_label(pipeline, entry, point),
                        pipeline=pipeline,
                        model_entry=entry,
                        point=point,
                        params=_sent(spec.params, entry.params, point),
                        base=spec.params,
                    )
                )
    return tuple(found)


def stage_model(variant: Variant, stage: Stage) -> str:
    """`provider/model` of the stage's call."""
    return stage.model or variant.model_entry.model


def stage_params(variant: Variant, stage: Stage) -> dict[str, Json]:
    """What is sent: params < model entry < sweep < stage; None is not sent. The entry's parameters are its model's own:
    a stage that pins another model does not get them."""
    own = variant.model_entry.params if not stage.model or stage.model == variant.model_entry.model else {}
    return _sent(variant.base, own, variant.point, stage.params)


def shape(spec: ExperimentSpec) -> Shape:
    points = max(1, len(spec.sweep))
    models = sum(len(pipeline.models) for pipeline in spec.pipelines)
    return Shape(max(1, len(spec.inputs)), spec.repeats, models * points)


def cell(grid: Shape, run_index: int) -> Cell:
    """The cell of a run. Raises IndexError for one that the grid has not."""
    if not 0 <= run_index < grid.total:
        raise IndexError(f"run {run_index} is not one of {grid.total}")
    row, variant_index = divmod(run_index, grid.variants)
    input_index, repeat = divmod(row, grid.repeats)
    return Cell(run_index, input_index, repeat, variant_index)


def run_index(grid: Shape, input_index: int, repeat: int, variant_index: int) -> int:
    return (input_index * grid.repeats + repeat) * grid.variants + variant_index
