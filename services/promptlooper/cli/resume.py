"""`promptlooper resume`: goes on with an experiment."""

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
def resume(
    session: Session,
    experiment_id: str,
    project: str | None,
    outputs: tuple[str, ...],
    detach: bool,
    request_id: str,
    as_json: bool,
    quiet: bool,
) -> int:
    """Go on with an experiment that was paused, cancelled or interrupted, and follow it to its end.

    Runs go on after their last stored stage. The exit code is that of `run`.
    """
    wanted = wanted_of(session, outputs, detach, request_id, as_json, quiet)
    return follow(session, wanted, resumed(experiment_id, project, wanted.request_id))


def resumed(
    text: str, project: str | None, request_id: str, check: Callable[[Experiment], None] = lambda experiment: None
) -> Start:
    """Takes up the experiment that is meant; `check` may refuse it first."""

    async def resume(experiments: Experiments, taken_up: Callable[[str], None]) -> Experiment:
        found = await meant(experiments, text, project)
        check(found)
        taken_up(found.experiment_id)
        return await experiments.resume(found.experiment_id, request_id)

    return resume
