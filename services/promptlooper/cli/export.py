"""`promptlooper export`: the rows of an experiment."""

from __future__ import annotations

import sys

import click

from promptlooper.cli.ids import LATEST, meant
from promptlooper.cli.output import Format, OutputFile, output_file, write_format, write_results
from promptlooper.cli.report import left_alone_line
from promptlooper.cli.session import Session, project_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.cli.wording import count
from promptlooper.experiment import Experiment, ExperimentState


@click.command()
@click.argument("experiment_id", metavar="[ID]", default=LATEST)
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    metavar="FILE",
    help="Write to FILE: .jsonl, .json or .csv; repeatable. Default: .jsonl on stdout.",
)
@project_option
@session_options
def export(session: Session, experiment_id: str, outputs: tuple[str, ...], project: str | None) -> None:
    """Write a row for every run that has started, by run index. ID defaults to `latest`."""
    files = [output_file(text) for text in outputs]
    left_alone = session.target.left_alone()
    experiment = run_interruptibly(_export(session, experiment_id, project, files))
    for file in files:
        click.echo(f"Wrote {file.path}", err=True)
    if left_alone(experiment) or experiment.state is ExperimentState.PAUSED:
        click.echo(left_alone_line(experiment, session.target), err=True)
    elif not experiment.state.ended:
        waiting = experiment.counts.pending + experiment.counts.running
        click.echo(f"Experiment {experiment.experiment_id} goes on: {count(waiting, 'run')} not ended yet.", err=True)


async def _export(session: Session, text: str, project: str | None, files: list[OutputFile]) -> Experiment:
    async with session.open() as experiments:
        experiment = await meant(experiments, text, project)
        for file in files:
            await write_results(experiments, experiment.experiment_id, file)
        if not files:
            await write_format(experiments, experiment.experiment_id, Format.JSONL, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        return experiment
