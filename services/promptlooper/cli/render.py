"""`promptlooper render`: what would be sent, without sending it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from promptlooper.cli.documents import print_document
from promptlooper.cli.messages import said
from promptlooper.cli.outcome import USAGE, Refused
from promptlooper.cli.overrides import file_argument, override_options, overrides_of
from promptlooper.cli.reading import read_file
from promptlooper.cli.session import env_file_option, json_option
from promptlooper.cli.wording import printable
from promptlooper.errors import InvalidArgument
from promptlooper.jsonvalue import json_text
from promptlooper.rows import message_row
from promptlooper.sources import RenderedRun, RenderedStage

if TYPE_CHECKING:
    from promptlooper.experiment import ExperimentSpec


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


def _rendered(spec: ExperimentSpec, run_index: int) -> RenderedRun:
    from promptlooper.runner.preview import rendered

    try:
        return rendered(spec, run_index)
    except InvalidArgument as error:
        message = error.message.replace("run_index", "--run-index", 1)
        raise Refused(f"{message}.", reason=error.reason, code=USAGE) from None


def _print(run: RenderedRun) -> None:
    place = f"run {run.run_index} of 0 to {run.runs - 1}: {run.label} · input {run.input_id} · repeat {run.repeat}"
    click.secho(printable(place), bold=True)
    for stage in run.stages:
        name = f" ({stage.name})" if stage.name else ""
        click.secho(printable(f"\nstage {stage.stage_index}{name}: {stage.model} {json_text(stage.params)}"), bold=True)
        for message in stage.messages:
            click.echo(printable("\n".join((f"[{message.role}]", message.content, *said(message)))))
        for line in _besides(stage):
            click.echo(printable(line))
        if stage.problem:
            why = "not known before earlier stages answer" if stage.stage_index else "this run would fail"
            click.echo(printable(f"{why}: {stage.problem}"))


def _besides(stage: RenderedStage) -> Iterator[str]:
    """What is sent beside the messages."""
    for tool in stage.tools:
        yield f"[tool] {tool.name} {json_text(tool.parameters)}"
    if stage.tool_choice:
        yield f"[tool_choice] {stage.tool_choice}"
    if stage.response_schema is not None:
        yield f"[response_schema] {json_text(stage.response_schema)}"


def _document(run: RenderedRun) -> dict[str, Any]:
    return {
        "run_index": run.run_index,
        "label": run.label,
        "input_id": run.input_id,
        "repeat": run.repeat,
        "stages": [
            {
                "index": stage.stage_index,
                "name": stage.name or None,
                "model": stage.model,
                "params": stage.params,
                "messages": [message_row(message) for message in stage.messages],
                "problem": stage.problem or None,
                "tools": [asdict(tool) for tool in stage.tools],
                "tool_choice": stage.tool_choice or None,
                "response_schema": stage.response_schema,
            }
            for stage in run.stages
        ],
    }
