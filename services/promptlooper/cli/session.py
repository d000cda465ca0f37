"""The Runner a command talks to: its core in this process, or the one at `--server`."""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from promptlooper.cli.outcome import USAGE, Refused
from promptlooper.errors import StoreUnavailable
from promptlooper.experiment import Experiment, ExperimentState
from promptlooper.experiments import Experiments

if TYPE_CHECKING:
    from promptlooper.clients.resuming import ConnectionListener

DEFAULT_HOME = ".promptlooper"


@dataclass(frozen=True, slots=True)
class Target:
    """Where experiments live: a server's address, or the folder of embedded data."""

    server: str | None
    home: Path
    providers: Path | None = None  # of this process; a server has its own
    env_file: str | None = None  # where --env-file named one

    def described(self) -> str:
        if self.server:
            return f"the Runner at {self.server}"
        from promptlooper.cli.embedded import database_path

        path = str(database_path(self.home))
        near = os.path.relpath(path)
        return path if near.startswith("..") else near

    def option(self) -> str:
        """What to add to a command so that it looks in the same place, in the same environment."""
        server = f" --server {self.server}" if self.server else ""
        return server + (f" --env-file {shlex.quote(self.env_file)}" if self.env_file else "")


_NEED_WORK = (ExperimentState.PENDING, ExperimentState.RUNNING, ExperimentState.PAUSED)


class Opener(Protocol):
    def __call__(
        self, target: Target, listener: ConnectionListener | None = None
    ) -> AbstractAsyncContextManager[Experiments]: ...


@dataclass(frozen=True, slots=True)
class Session:
    """What a command gets: where to look, and how to open it."""

    target: Target
    opener: Opener

    def working_on(self, experiment_id: str) -> AbstractContextManager[None]:
        """Says to other commands on the same embedded data that this process works on the experiment."""
        if self.target.server is not None:
            return nullcontext()
        from promptlooper.cli.working import working_on

        return working_on(self.target.home, experiment_id)

    def left_alone(self) -> Callable[[Experiment], bool]:
        """Whether an experiment that is read after this call has not ended, and no process works on it. Only of
        embedded data: a server's Runners take up what one of them left."""
        if self.target.server is not None:
            return lambda experiment: False
        from promptlooper.cli.working import worked_on

        home = self.target.home
        before = worked_on(home)  # and after: one may have begun or ended while it was read

        def alone(experiment: Experiment) -> bool:
            name = experiment.experiment_id
            return experiment.state in _NEED_WORK and name not in before and name not in worked_on(home)

        return alone

    def is_worked_on(self, experiment_id: str) -> bool:
        """Whether a process, this one included, works on an experiment of the embedded data."""
        from promptlooper.cli.working import worked_on

        return experiment_id in worked_on(self.target.home)

    def open(self, listener: ConnectionListener | None = None) -> AbstractAsyncContextManager[Experiments]:
        """`listener` hears of the connection to a server."""
        return self.opener(self.target, listener)


@asynccontextmanager
async def opened(target: Target, listener: ConnectionListener | None = None) -> AsyncIterator[Experiments]:
    if target.server:
        from promptlooper.clients.runner import connected
        from promptlooper.rpc.security import ChannelSecurity

        security = ChannelSecurity.from_environment(os.environ)
        async with connected(target.server, security=security, listener=listener) as remote:
            yield remote
    else:
        from promptlooper.cli.embedded import embedded

        async with AsyncExitStack() as stack:
            with _said_of_home(target):
                local = await stack.enter_async_context(embedded(target.home, target.providers))
            yield local


@contextmanager
def _said_of_home(target: Target) -> Iterator[None]:
    """What is wrong with the folder of embedded data, with what to do."""
    from sqlalchemy.exc import DatabaseError

    elsewhere = "set PROMPTLOOPER_HOME to another folder"
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        message = f"The folder of embedded data cannot be used: {error.filename}: {error.strerror}; {elsewhere}."
        raise Refused(message, reason="STORE_UNAVAILABLE") from error
    except StoreUnavailable as error:
        message = f"{target.described()} cannot be opened: {error.message}. If it is not in use, {elsewhere}."
        raise Refused(message, reason="STORE_UNAVAILABLE") from error
    except DatabaseError as error:
        if "not a database" not in str(error.orig):
            raise
        message = f"{target.described()} is not a database of PromptLooper: move it away, or {elsewhere}."
        raise Refused(message, reason="STORE_UNAVAILABLE") from error


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
        home = Path(os.environ.get("PROMPTLOOPER_HOME") or DEFAULT_HOME).absolute()
        providers = os.environ.get("PROMPTLOOPER_PROVIDERS")
        opener: Opener = ctx.obj if ctx.obj is not None else opened  # tests bring their own
        target = Target(value or None, home, Path(providers) if providers else None, ctx.meta.get(_ENV_FILE))
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
