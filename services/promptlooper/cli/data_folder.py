"""The option `--data` of `up`, `down` and `status`: the folder that a stack lives in."""

from __future__ import annotations

from pathlib import Path

import click

from promptlooper.clients.opening import usual_home


def default_data() -> Path:
    return usual_home() / "up"


def _resolved(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path:
    return value.absolute() if value is not None else default_data()


data_option = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    callback=_resolved,
    help="The folder of the stack's data and logs. [PROMPTLOOPER_HOME/up, else .promptlooper/up]",
)


def hint(data: Path) -> str:
    """What to add to a command so that it finds the same stack."""
    return "" if data == default_data() else f" --data {data}"
