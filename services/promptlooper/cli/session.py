"""The Runner a command talks to: its core in this process, or the one at `--server`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from promptlooper.cli.outcome import USAGE, Refused
from promptlooper.clients import opening
from promptlooper.experiments import Experiments

if TYPE_CHECKING:
    from promptlooper.clients.resuming import ConnectionListener


@dataclass(frozen=True, slots=True)
class Target(opening.Target):
    """Where a command looks for experiments."""

    env_file: str | None = None  # where --env-file named one

    def option(self) -> str:
        """What to add to a command so that it looks in the same place, in the same environment."""
        server = f" --server {self.server}" if self.server else ""
        return server + (f" --env-file {shlex.quote(self.env_file)}" if self.env_file else "")


class Opener(Protocol):
    def __call__(
        self, target: Target, listener: ConnectionListener | None = None
    ) -> AbstractAsyncContextManager[Experiments]: ...


@dataclass(frozen=True, slots=True)
class Session:
    """What a command gets: where to look, and how to open it."""

    target: Target
    opener: Opener

    def open(self, listener: ConnectionListener | None = None) -> AbstractAsyncContextManager[Experiments]:
        """`listener` hears of the connection to a server."""
        return self.opener(self.target, listener)


_ENV_FILE = "promptlooper.env_file"


def _load_environment(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Before the other options are looked at, because they may be set by variables. What is set already stays."""
    path = value or ".env"
    ctx.meta[_ENV_FILE] = value
    if ctx.resilient_parsing or (value is None and not os.path.isfile(path)):
        return
    import logging

    from dotenv import load_dotenv
    from dotenv.parser import parse_stream

    try:
        with open(path, encoding="utf-8") as file:
            wrong = [binding.original for binding in parse_stream(file) if binding.error]
    except UnicodeDecodeError as error:
        raise Refused(f"{path!r} is not UTF-8 text: {error.reason}.", reason="INVALID_ARGUMENT", code=USAGE) from error
    for original in wrong:
        # Not the text itself: it may hold a key.
        click.echo(f"{path}:{original.line}: this is not NAME=VALUE, and is left out.", err=True)
    logging.getLogger("dotenv.main").disabled = True  # it would say the same again, without the file
    load_dotenv(path, override=False)


Command = TypeVar("Command", bound=Callable[..., Any])

env_file_option = click.option(
    "--env-file",
    type=click.Path(exists=True, dir_okay=False, readable=True),
    is_eager=True,
    expose_value=False,
    callback=_load_environment,
    help="Read environment variables from FILE instead of .env. What is set already stays.",
    metavar="FILE",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
project_option = click.option("--project", metavar="NAME", help="The project to look in; `latest` looks in `default`.")


def session_options(command: Command) -> Command:
    """`--server` and `--env-file`; the command takes the Session that they make as `session`."""

    def with_session(ctx: click.Context, param: click.Parameter, value: str | None) -> Session:
        opener: Opener = ctx.obj if ctx.obj is not None else opening.opened  # tests bring their own
        env_file = ctx.meta.get(_ENV_FILE)
        target = Target(value or None, opening.usual_home(), opening.usual_providers(), env_file=env_file)
        return Session(target, opener)

    server = click.option(
        "--server",
        "session",
        metavar="HOST:PORT,…",
        envvar="PROMPTLOOPER_SERVER",
        callback=with_session,
        help="Use the Runner there, or any of those in the list, instead of this process. [PROMPTLOOPER_SERVER]",
    )
    return env_file_option(server(command))
