"""`promptlooper delete`: an experiment and everything that was stored for it."""

from __future__ import annotations

import click

from promptlooper.cli.ids import meant
from promptlooper.cli.questions import confirm
from promptlooper.cli.session import Session, project_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.cli.wording import count, one_line
from promptlooper.experiment import Experiment


@click.command()
@click.argument("experiment_id", metavar="ID")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@project_option
@session_options
def delete(session: Session, experiment_id: str, yes: bool, project: str | None) -> None:
    """Delete an experiment and its results. The cache keeps its answers."""
    found = run_interruptibly(_found(session, experiment_id, project))
    what = f"experiment {found.experiment_id} ({one_line(found.name, 60)}, {count(found.counts.total, 'run')})"
    confirm(f"Delete {what} and all its results?", yes)
    run_interruptibly(_delete(session, found.experiment_id))
    click.echo(f"Deleted {what}.", err=True)


async def _found(session: Session, text: str, project: str | None) -> Experiment:
    async with session.open() as experiments:
        return await meant(experiments, text, project)


async def _delete(session: Session, experiment_id: str) -> None:
    async with session.open() as experiments:
        await experiments.delete(experiment_id)
