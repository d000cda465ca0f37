"""`promptlooper events`: what happened to an experiment so far."""

from __future__ import annotations

from collections.abc import Callable

import click

from promptlooper.cli.documents import print_document
from promptlooper.cli.ids import meant
from promptlooper.cli.kinds import kinds_option
from promptlooper.cli.session import Session, project_option, session_options
from promptlooper.cli.signals import run_interruptibly
from promptlooper.cli.watch import event_document, event_line
from promptlooper.clients.following import kept_events
from promptlooper.run import Event


@click.command()
@click.argument("experiment_id", metavar="ID")
@click.option("--after", type=click.IntRange(min=0), metavar="N", help="Only those after number N.")
@kinds_option
@click.option("-n", "--limit", type=click.IntRange(min=1), metavar="N", help="The first N of them.")
@project_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
@session_options
def events(
    session: Session,
    experiment_id: str,
    after: int | None,
    kinds: tuple[str, ...],
    limit: int | None,
    project: str | None,
    as_json: bool,
) -> None:
    """Print the events of an experiment so far, by their numbers. `watch` waits for those to come.

    Where the first ones are no longer kept, it begins with the earliest that is; with --after it fails instead.
    """
    shown = _json if as_json else _line
    run_interruptibly(_printed(session, experiment_id, project, after, kinds, limit, shown))


def _json(event: Event) -> None:
    print_document(event_document(event))


def _line(event: Event) -> None:
    click.echo(event_line(event))


async def _printed(
    session: Session,
    text: str,
    project: str | None,
    after: int | None,
    kinds: tuple[str, ...],
    limit: int | None,
    show: Callable[[Event], None],
) -> None:
    def skipped(earliest: int) -> None:
        click.echo(f"Events before number {earliest} of experiment {name} are no longer kept.", err=True)

    async with session.open() as experiments:
        name = (await meant(experiments, text, project)).experiment_id
        told = skipped if after is None else None
        async for event in kept_events(experiments, name, after or 0, kinds, limit=limit, skipped=told):
            show(event)
