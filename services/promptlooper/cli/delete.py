"""`promptlooper delete`: an experiment and everything that was stored for it."""

from __future__ import annotations

import click

from promptlooper.cli.ids import LATEST, meant
from promptlooper.cli.questions import confirm
from promptlooper.cli.session import Session, project_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.cli.wording import count, one_line
from promptlooper.errors import ExperimentNotFound
from promptlooper.experiment import Experiment


@click.command()
@click.argument("experiment_id", metavar="ID")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@project_option
@session_options
def delete(session: Session, experiment_id: str, yes: bool, project: str | None) -> None:
    """Delete an experiment and its results. The cache keeps its answers."""
    found = run_interruptibly(_found(session, experiment_id, project))
    if found is None:
        click.echo(f"Experiment {experiment_id} was deleted before.", err=True)
        return
    what = f"experiment {found.experiment_id} ({one_line(found.name, 60)}, {count(found.counts.total, 'run')})"
    confirm(f"Delete {what} and all its results?", yes)
    run_interruptibly(_delete(session, found.experiment_id))
    click.echo(f"Deleted {what}.", err=True)


async def _found(session: Session, text: str, project: str | None) -> Experiment | None:
    """None: it was there, and was deleted a short time ago."""
    async with session.open() as experiments:
        try:
            return await meant(experiments, text, project)
        except ExperimentNotFound:
            # Of a project's name or `latest` nothing is known any more; an ID the Runner still knows for a while.
            if text == LATEST or project is not None:
                raise
            await experiments.delete(text)
            return None


async def _delete(session: Session, experiment_id: str) -> None:
    async with session.open() as experiments:
        await experiments.delete(experiment_id)
