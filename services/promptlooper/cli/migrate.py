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
def migrate(database_url: str | None, password_file: Path | None) -> None:
    """Bring the database up to date. Safe to repeat; two at once wait for each other.

    Without a URL: the database that `promptlooper serve runner` would use here.
    """
    try:
        from promptlooper.runner.settings import RunnerSettings
        from promptlooper.runner.store.migrate import upgrade
    except ModuleNotFoundError as error:
        raise missing_extra(error, "runner", "`promptlooper migrate`") from error

    url = database_url or RunnerSettings().database_url
    before, after = upgrade(url, password_file)
    shown = masked(url)
    if before == after:
        click.echo(f"{shown} is up to date, at revision {after}.")
    else:
        click.echo(f"{shown}: from revision {before or 'none'} to revision {after}.")
