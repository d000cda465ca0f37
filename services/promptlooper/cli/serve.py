"""`promptlooper serve`: one service in the foreground, as a container runs it."""

from __future__ import annotations

import importlib

import click

from promptlooper.cli.outcome import Refused
from promptlooper.cli.stack import SERVICES
from promptlooper.rpc.process import run_service


@click.command()
@click.argument("service", type=click.Choice(SERVICES), envvar="PROMPTLOOPER_SERVICE")
def serve(service: str) -> None:
    """Run one service in the foreground until SIGTERM or Ctrl-C.

    Its settings come from PROMPTLOOPER_* variables; docs/operations.md lists them. An image of a service names it in
    PROMPTLOOPER_SERVICE.
    """
    try:
        program = importlib.import_module(f"promptlooper.{service}.__main__")
    except ModuleNotFoundError as error:
        raise missing_extra(error, service, f"`promptlooper serve {service}`") from error
    run_service(program.main)


def missing_extra(error: ModuleNotFoundError, extra: str, needed_by: str) -> Exception:
    """What to say about a package that is not there; the error itself, if the package is our own."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "promptlooper"):
        return error
    return Refused(
        f"{needed_by} needs the package {package!r}, which is not installed: pip install 'promptlooper[{extra}]'",
        reason="MISSING_EXTRA",
    )
