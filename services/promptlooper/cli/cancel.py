"""`promptlooper cancel`: stops an experiment."""

from __future__ import annotations

import click

from promptlooper.cli.documents import print_document
from promptlooper.cli.ids import meant
from promptlooper.cli.session import Session, json_option, project_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.experiment import Experiment, ExperimentState
from promptlooper.rows import experiment_document


@click.command()
@click.argument("experiment_id", metavar="ID")
@project_option
@json_option
@session_options
def cancel(session: Session, experiment_id: str, project: str | None, as_json: bool) -> None:
    """Stop an experiment. Results so far stay; one that has ended stays as it is."""
    now = run_interruptibly(_cancelled(session, experiment_id, project))
    if as_json:
        print_document(experiment_document(now))
    elif now.state in (ExperimentState.CANCELLING, ExperimentState.CANCELLED):
        click.echo(f"Experiment {now.experiment_id} is {now.state.value}.", err=True)
    else:
        click.echo(f"Experiment {now.experiment_id} had ended before: it is {now.state.value}.", err=True)


async def _cancelled(session: Session, text: str, project: str | None) -> Experiment:
    async with session.open() as experiments:
        found = await meant(experiments, text, project)
        return await experiments.cancel(found.experiment_id)
