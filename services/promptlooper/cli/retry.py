"""`promptlooper retry`: runs the failed runs of an experiment again."""

from __future__ import annotations

from collections.abc import Callable

import click

from promptlooper.cli.following import Start, follow, following_options, wanted_of
from promptlooper.cli.ids import meant
from promptlooper.cli.session import Session, project_option, session_options
from promptlooper.experiment import Experiment
from promptlooper.experiments import Experiments


@click.command()
@click.argument("experiment_id", metavar="ID")
@project_option
@following_options
@session_options
def retry(
    session: Session,
    experiment_id: str,
    project: str | None,
    outputs: tuple[str, ...],
    detach: bool,
    request_id: str,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run the failed runs of an experiment again, each from the stage that failed, and follow it to its end.

    The exit code is that of `run`.
    """
    wanted = wanted_of(session, outputs, detach, request_id, as_json, quiet)
    return follow(session, wanted, _retried(experiment_id, project, wanted.request_id))


def _retried(text: str, project: str | None, request_id: str) -> Start:
    async def retry(experiments: Experiments, taken_up: Callable[[str], None]) -> Experiment:
        found = await meant(experiments, text, project)
        taken_up(found.experiment_id)
        now = await experiments.retry(found.experiment_id, request_id)
        if not found.counts.failed:
            click.echo(f"No run of experiment {found.experiment_id} has failed: there is nothing to retry.", err=True)
        return now

    return retry
