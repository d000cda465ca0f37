"""`promptlooper render`: what would be sent, without sending it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from promptlooper.cli.documents import print_document
from promptlooper.cli.outcome import USAGE, Refused
from promptlooper.cli.overrides import file_argument, override_options, overrides_of
from promptlooper.cli.reading import read_file
from promptlooper.cli.session import env_file_option, json_option
from promptlooper.cli.wording import printable
from promptlooper.completion import Message
from promptlooper.errors import TemplateError
from promptlooper.jsonvalue import json_text
from promptlooper.run import StageResult

if TYPE_CHECKING:
    from promptlooper.experiment import ExperimentSpec, Stage


@dataclass(frozen=True, slots=True)
class _RenderedStage:
    index: int
    name: str
    model: str
    params: dict[str, Any]
    messages: tuple[Message, ...]
    problem: str | None  # why it can't be shown: a template that needs more of an output than a placeholder has


@dataclass(frozen=True, slots=True)
class _RenderedRun:
    run_index: int
    runs: int
    label: str
    input_id: str
    repeat: int
    stages: tuple[_RenderedStage, ...]


@click.command()
@file_argument
@click.option("--run-index", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Which run.")
@override_options
@json_option
@env_file_option
def render(file: Path, run_index: int, as_json: bool, **flags: Any) -> None:
    """Print the exact messages of a run. Outputs of earlier stages are placeholders, such as <output of think>."""
    read = read_file(file, overrides_of(flags))
    rendered = _rendered(read.spec, run_index)
    if as_json:
        print_document(_document(rendered))
    else:
        _print(rendered)


def _rendered(spec: ExperimentSpec, run_index: int) -> _RenderedRun:
    from promptlooper.runner.render import Renderer, variables
    from promptlooper.runner.spec.expand import cell, shape, stage_model, stage_params, variants

    grid = shape(spec)
    try:
        place = cell(grid, run_index)
    except IndexError:
        raise Refused(
            f"--run-index {run_index} is too large: the runs are 0 to {grid.total - 1}.",
            reason="INVALID_ARGUMENT",
            code=USAGE,
        ) from None
    variant = variants(spec)[place.variant_index]
    row = spec.inputs[place.input_index]
    renderer = Renderer()
    earlier: list[StageResult] = []
    stages = []
    for index, stage in enumerate(variant.pipeline.stages):
        messages: tuple[Message, ...] = ()
        problem = None
        try:
            messages = renderer.messages(stage, variables(spec, row, earlier, index))
        except TemplateError as error:
            problem = error.message
        model = stage_model(variant, stage)
        stages.append(_RenderedStage(index, stage.name, model, stage_params(variant, stage), messages, problem))
        earlier.append(_placeholder(index, stage, model, messages))
    return _RenderedRun(run_index, grid.total, variant.label, row.input_id, place.repeat, tuple(stages))


def _placeholder(index: int, stage: Stage, model: str, messages: tuple[Message, ...]) -> StageResult:
    return StageResult(
        stage_index=index,
        name=stage.name,
        messages=messages,
        output=f"<output of {stage.name or f'stage {index}'}>",
        model=model,
        model_requested=model,
        params={},
        tokens_in=None,
        tokens_out=None,
        tokens_reasoning=None,
        tokens_cached_in=None,
        latency_ms=0,
        ttft_ms=None,
        cost_nanousd=None,
        cost_saved_nanousd=None,
        cached=False,
        attempts=0,
        finish_reason="stop",
    )


def _print(run: _RenderedRun) -> None:
    place = f"run {run.run_index} of 0 to {run.runs - 1}: {run.label} · input {run.input_id} · repeat {run.repeat}"
    click.secho(printable(place), bold=True)
    for stage in run.stages:
        name = f" ({stage.name})" if stage.name else ""
        click.secho(printable(f"\nstage {stage.index}{name}: {stage.model} {json_text(stage.params)}"), bold=True)
        for message in stage.messages:
            click.echo(printable(f"[{message.role}]\n{message.content}"))
        if stage.problem is not None:
            why = "not known before earlier stages answer" if stage.index else "this run would fail"
            click.echo(printable(f"{why}: {stage.problem}"))


def _document(run: _RenderedRun) -> dict[str, Any]:
    return {
        "run_index": run.run_index,
        "label": run.label,
        "input_id": run.input_id,
        "repeat": run.repeat,
        "stages": [
            {
                "index": stage.index,
                "name": stage.name or None,
                "model": stage.model,
                "params": stage.params,
                "messages": [{"role": message.role, "content": message.content} for message in stage.messages],
                "problem": stage.problem,
            }
            for stage in run.stages
        ],
    }
