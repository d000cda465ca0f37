"""`promptlooper list`: experiments, newest first."""

from __future__ import annotations

from collections.abc import Sequence

import click

from promptlooper.cli.documents import print_document
from promptlooper.cli.pairs import key_value
from promptlooper.cli.report import left_alone_line, shown_state
from promptlooper.cli.session import Session, json_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.cli.tables import print_table, table_width, terminal_width
from promptlooper.cli.wording import local_time, one_line, spent
from promptlooper.experiment import Experiment, ExperimentState
from promptlooper.experiments import ExperimentFilter
from promptlooper.rows import experiment_document

_PAGE = 200
_LEAST_NAME = 12  # columns


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
    left_alone = session.target.left_alone()
    found = run_interruptibly(_newest(session, where, limit))
    if as_json:
        print_document([experiment_document(experiment) for experiment in found])
    elif found:
        left = [each for each in found if left_alone(each) and each.state is not ExperimentState.PAUSED]
        print_table(*_fitting([_cells(each, each in left) for each in found], terminal_width()))
        if left:
            click.echo(_left_line(left, session), err=True)
    elif where == ExperimentFilter():
        where_looked = session.target.described()
        click.echo(f"There is no experiment in {where_looked}. Start one with `promptlooper run`.", err=True)
    else:
        click.echo(f"No experiment matches this filter in {session.target.described()}.", err=True)


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


def _left_line(left: Sequence[Experiment], session: Session) -> str:
    if len(left) == 1:
        return left_alone_line(left[0], session.target)
    option = session.target.option()
    return (
        f"{len(left):,} experiments were interrupted: `promptlooper run --resume ID{option}` goes on with one, "
        f"`promptlooper cancel ID{option}` ends it."
    )


def _cells(experiment: Experiment, interrupted: bool) -> dict[str, str]:
    counts = experiment.counts
    return {
        "id": experiment.experiment_id,
        "project": experiment.project,
        "name": one_line(experiment.name, 40),
        "state": shown_state(experiment, interrupted),
        "runs": f"{counts.completed + counts.failed}/{counts.total}",
        "failed": str(counts.failed),
        "cost": spent(experiment.cost_nanousd, experiment.cost_unknown_calls),
        "created": local_time(experiment.created_at),
    }


def _fitting(rows: Sequence[dict[str, str]], width: int | None) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: on a narrow terminal with shorter names and times, then without columns that say least."""
    headings = list(rows[0])
    if width is not None:
        one_project = len({row["project"] for row in rows}) == 1
        leave_out = (
            ("project", "failed", "created", "cost") if one_project else ("failed", "created", "cost", "project")
        )
        for left_out in (None, *leave_out):
            if left_out is not None:
                headings.remove(left_out)
            table = _shortened(headings, rows, width)
            if table_width(headings, table) <= width:
                return headings, table
    return headings, [[row[heading] for heading in headings] for row in rows]


def _shortened(headings: Sequence[str], rows: Sequence[dict[str, str]], width: int) -> list[list[str]]:
    """Without the seconds of times, and with names cut to what is left for them."""
    shorter = [{**row, "created": row["created"][: len("2026-01-02 03:04")]} for row in rows]
    nameless = [[*("" if heading == "name" else row[heading] for heading in headings)] for row in shorter]
    room = max(_LEAST_NAME, width - table_width(headings, nameless) + len("name"))
    for row in shorter:
        row["name"] = one_line(row["name"], room)
    return [[row[heading] for heading in headings] for row in shorter]
