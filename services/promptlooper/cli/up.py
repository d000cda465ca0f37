"""`promptlooper up`: the whole stack on this machine, in the foreground or as a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from promptlooper.cli.data_folder import data_option, hint
from promptlooper.cli.outcome import USAGE, Refused
from promptlooper.cli.session import env_file_option
from promptlooper.cli.stack import (
    DEFAULT_PORT_BASE,
    MAX_PORT_BASE,
    MAX_REPLICAS,
    Options,
    Part,
    free_port_base,
    planned_parts,
    ports_in_use,
)
from promptlooper.cli.stack_state import StackState, is_owned, read_state

Command = TypeVar("Command", bound=Callable[..., Any])


def _replicas_option(kind: str) -> Callable[[Command], Command]:
    return click.option(
        f"--{kind}s",
        type=click.IntRange(1, MAX_REPLICAS),
        default=1,
        show_default=True,
        metavar="N",
        help=f"How many {kind.capitalize()}s.",
    )


@click.command()
@click.option("-d", "--detach", is_flag=True, help="Return when every part is healthy. `promptlooper down` stops them.")
@data_option
@_replicas_option("runner")
@_replicas_option("adapter")
@_replicas_option("cache")
@_replicas_option("scorer")
@click.option(
    "--database-url",
    metavar="URL",
    envvar="PROMPTLOOPER_DATABASE_URL",
    help="postgresql://USER@HOST:PORT/NAME. Without it: an SQLite file in the data folder. [PROMPTLOOPER_DATABASE_URL]",
)
@click.option(
    "--providers",
    type=click.Path(exists=True, dir_okay=False, readable=True, resolve_path=True, path_type=Path),
    metavar="FILE",
    envvar="PROMPTLOOPER_PROVIDERS",
    help="A providers file for the Adapters. [PROMPTLOOPER_PROVIDERS]",
)
@click.option(
    "--port-base",
    type=click.IntRange(0, MAX_PORT_BASE),
    default=DEFAULT_PORT_BASE,
    show_default=True,
    metavar="P",
    help="The first Runner's port; the others' follow from it, health is 100 above. 0 takes ports that are free.",
)
@env_file_option
def up(
    detach: bool,
    data: Path,
    runners: int,
    adapters: int,
    caches: int,
    scorers: int,
    database_url: str | None,
    providers: Path | None,
    port_base: int,
) -> None:
    """Start NATS, Redis, Cache, Scorer, Adapter and Runner on this machine.

    Stays in the foreground and prints what they say, until Ctrl-C; with -d it returns when every part is healthy.
    A part that dies later is started again. More than one Runner needs a PostgreSQL.
    Provider keys (OPENAI_API_KEY and the like, also from .env) reach the Adapter and no other part.
    """
    # Before grpc is imported, which asks parts for their health: its handlers of fork crash one child in ten, as its
    # threads run on beside them.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    replicas = {"runner": runners, "adapter": adapters, "cache": caches, "scorer": scorers}
    _refuse_second(data)
    _check_settings(database_url, providers)
    options = Options(data, replicas, database_url or None, providers, port_base or free_port_base(replicas))
    _refuse_many_on_sqlite(options)
    parts = planned_parts(replicas, options.port_base)
    _refuse_taken(parts)
    if detach:
        from promptlooper.cli.detached import start_detached

        _print_ready(start_detached(options), data)
    else:
        _run_here(options, parts)


def _check_settings(database_url: str | None, providers: Path | None) -> None:
    """Raises InvalidArgument with what a part would refuse, before anything is started."""
    if database_url:
        from promptlooper.runner.store.database import Database

        Database(database_url).close()  # connects to nothing yet
    if providers is not None:
        from promptlooper.adapter.config import read_providers_file

        read_providers_file(providers)


def _refuse_many_on_sqlite(options: Options) -> None:
    runners = options.replicas["runner"]
    if runners > 1 and options.sqlite:
        raise Refused(
            f"SQLite takes one Runner, and --runners is {runners}: give a PostgreSQL with "
            "--database-url postgresql://USER@HOST:PORT/NAME, or leave --runners at 1.",
            reason="INVALID_ARGUMENT",
            code=USAGE,
        )


def _refuse_second(data: Path) -> None:
    if not is_owned(data):
        return
    state = read_state(data)
    where = f", its Runner answers at {state.server}" if state else ""
    raise Refused(
        f"A stack is already running with its data in {str(data)!r}{where}. "
        f"See it with `promptlooper status{hint(data)}`, stop it with `promptlooper down{hint(data)}`.",
        reason="ALREADY_RUNNING",
    )


def _refuse_taken(parts: tuple[Part, ...]) -> None:
    taken = ports_in_use(parts)
    if not taken:
        return
    listed = ", ".join(f"{port} ({part.name})" for port, part in taken)
    raise Refused(
        f"These ports are in use: {listed}. Nothing was started. "
        "Stop what listens there, or take others with --port-base P (0: ports that are free).",
        reason="PORT_IN_USE",
    )


def _run_here(options: Options, parts: tuple[Part, ...]) -> None:
    from promptlooper.cli.stack_log import SUPERVISOR, printer
    from promptlooper.cli.supervisor import run_stack

    emit = printer(parts, sys.stdout, colour=sys.stdout.isatty())

    def on_ready(state: StackState) -> None:
        for line in ready_lines(state, options.data):
            emit(SUPERVISOR, line)
        emit(SUPERVISOR, "Ctrl-C stops everything")

    stopped_by = run_stack(options, parts, log=None, emit=emit, on_ready=on_ready)
    emit(SUPERVISOR, "everything is stopped")
    raise SystemExit(128 + stopped_by)


def _print_ready(state: StackState, data: Path) -> None:
    for line in ready_lines(state, data):
        click.echo(line)
    click.echo(f"Parts: promptlooper status{hint(data)}")
    click.echo(f"Log:   {state.log}")
    click.echo(f"Stop:  promptlooper down{hint(data)}")


def ready_lines(state: StackState, data: Path) -> list[str]:
    """Where things are, and what to do with them."""
    width = max(len(part.name) for part in state.parts)
    return [
        f"Everything is healthy. Data is in {data}.",
        *(f"  {part.name.ljust(width)}  {part.address}" for part in state.parts),
        f"Run:   promptlooper run FILE --server {state.server}",
    ]
