"""`promptlooper migrate`: brings the database up to date."""

from __future__ import annotations

from pathlib import Path

import click

from promptlooper.cli.serve import missing_extra
from promptlooper.settings import masked


@click.command()
@click.option(
    "--database-url",
    metavar="URL",
    envvar="PROMPTLOOPER_DATABASE_URL",
    help="postgresql://USER@HOST:PORT/NAME or sqlite:///PATH. [PROMPTLOOPER_DATABASE_URL]",
)
@click.option(
    "--database-password-file",
    "password_file",
    type=click.Path(path_type=Path),
    envvar="PROMPTLOOPER_DATABASE_PASSWORD_FILE",
    help="A file with the password, if the URL has none. [PROMPTLOOPER_DATABASE_PASSWORD_FILE]",
)
@click.option("--to", metavar="REVISION", help="Another revision than the newest: to go back before older code is run.")
@click.option("--discard-data", is_flag=True, help="Go back also where that loses what older tables have no place for.")
def migrate(database_url: str | None, password_file: Path | None, to: str | None, discard_data: bool) -> None:
    """Bring the database up to date. Safe to repeat; two at once wait for each other.

    Without a URL: the database that `promptlooper serve runner` would use here. docs/operations.md says in which order
    services are upgraded.
    """
    try:
        from promptlooper.runner.settings import RunnerSettings
        from promptlooper.runner.store.migrate import HEAD, move, upgrade
    except ModuleNotFoundError as error:
        raise missing_extra(error, "runner", "`promptlooper migrate`") from error

    url = database_url or RunnerSettings().database_url
    before, after = move(url, to, password_file, discard=discard_data) if to else upgrade(url, password_file)
    shown = masked(url)
    if before == after:
        newer = f", newer than this version's {HEAD}, which works with it" if after > HEAD else ""
        click.echo(f"{shown} is {'at' if to else 'up to date, at'} revision {after}{newer}.")
    else:
        click.echo(f"{shown}: from revision {before or 'none'} to revision {after}.")
