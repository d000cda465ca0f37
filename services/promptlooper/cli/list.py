"""`promptlooper list`: experiments, newest first."""

from __future__ import annotations

import click

from promptlooper.cli.documents import print_document
from promptlooper.cli.pairs import key_value
from promptlooper.cli.rows import experiment_document
from promptlooper.cli.session import Session, json_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.cli.tables import print_table
from promptlooper.cli.wording import local_time, one_line, spent
from promptlooper.experiment import Experiment, ExperimentState
from promptlooper.experiments import ExperimentFilter

_PAGE = 200


@click.command("list")
@click.option("--project", default="", metavar="NAME", help="Only of this project; default: of all.")
@click.option("--tag", "tags", multiple=True, help="Only with this tag; repeatable.")
@click.option("--metadata", multiple=True, metavar="K=V", help="Only with this metadata; repeatable.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in ExperimentState], case_sensitive=False),
    help="Only in this state; repeatable.",
)
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most.")
@json_option
@session_options
def list_command(
    session: Session,
    project: str,
    tags: tuple[str, ...],
    metadata: tuple[str, ...],
    states: tuple[str, ...],
    limit: int,
    as_json: bool,
) -> None:
    """List experiments, newest first."""
    where = ExperimentFilter(
        project=project,
        tags=tags,
        metadata=dict(key_value(pair, "--metadata") for pair in metadata),
        states=tuple(ExperimentState(state) for state in states),
    )
    found = run_interruptibly(_newest(session, where, limit))
    if as_json:
        print_document([experiment_document(experiment) for experiment in found])
    elif found:
        print_table(
            ("id", "project", "name", "state", "runs", "failed", "cost", "created"),
            [_cells(experiment) for experiment in found],
        )
    else:
        click.echo(f"No such experiment in {session.target.described()}. Start one with `promptlooper run`.", err=True)


async def _newest(session: Session, where: ExperimentFilter, limit: int) -> list[Experiment]:
    found: list[Experiment] = []
    token = ""
    async with session.open() as experiments:
        while len(found) < limit:
            page = await experiments.list_experiments(where, min(_PAGE, limit - len(found)), token)
            found.extend(page.experiments)
            token = page.next_page_token
            if not token:
                break
    return found


def _cells(experiment: Experiment) -> tuple[str, ...]:
    counts = experiment.counts
    return (
        experiment.experiment_id,
        experiment.project,
        one_line(experiment.name, 40),
        experiment.state.value,
        f"{counts.completed + counts.failed}/{counts.total}",
        str(counts.failed),
        spent(experiment.cost_nanousd, experiment.cost_unknown_calls),
        local_time(experiment.created_at),
    )
