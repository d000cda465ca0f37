"""`promptlooper pause`: starts nothing new of an experiment until it is resumed."""

from __future__ import annotations

import click

from promptlooper.cli.documents import print_document
from promptlooper.cli.ids import meant
from promptlooper.cli.report import paused_line
from promptlooper.cli.session import Session, json_option, project_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.experiment import Experiment, ExperimentState
from promptlooper.rows import experiment_document


@click.command()
@click.argument("experiment_id", metavar="ID")
@project_option
@json_option
@session_options
def pause(session: Session, experiment_id: str, project: str | None, as_json: bool) -> None:
    """Pause an experiment: nothing new starts, calls under way end and are kept. `resume` goes on."""
    now = run_interruptibly(_paused(session, experiment_id, project))
    if as_json:
        print_document(experiment_document(now))
    elif now.state is ExperimentState.PAUSED:
        click.echo(paused_line(now, session.target), err=True)
    else:
        click.echo(f"Experiment {now.experiment_id} had ended before: it is {now.state.value}.", err=True)


async def _paused(session: Session, text: str, project: str | None) -> Experiment:
    async with session.open() as experiments:
        found = await meant(experiments, text, project)
        return await experiments.pause(found.experiment_id)
