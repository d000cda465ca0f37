"""Where experiments live, and the one place that opens a Runner: over gRPC, or embedded in this process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from promptlooper.clients.packages import needed
from promptlooper.experiment import Experiment, ExperimentState
from promptlooper.experiments import Experiments

if TYPE_CHECKING:
    from promptlooper.clients.resuming import ConnectionListener
    from promptlooper.rpc.security import ChannelSecurity

DEFAULT_HOME = ".promptlooper"
_EMBEDDED = "Without the address of a server, experiments run in this process, which"
_NEED_WORK = (ExperimentState.PENDING, ExperimentState.RUNNING, ExperimentState.PAUSED)


def usual_server() -> str | None:
    """What PROMPTLOOPER_SERVER says."""
    return os.environ.get("PROMPTLOOPER_SERVER") or None


def usual_home() -> Path:
    """The folder of embedded data: PROMPTLOOPER_HOME, else `.promptlooper`."""
    return Path(os.environ.get("PROMPTLOOPER_HOME") or DEFAULT_HOME).absolute()


def usual_providers() -> Path | None:
    """What PROMPTLOOPER_PROVIDERS says."""
    providers = os.environ.get("PROMPTLOOPER_PROVIDERS")
    return Path(providers) if providers else None


@dataclass(frozen=True, slots=True)
class Target:
    """Where experiments live: a server's address, or the folder of embedded data."""

    server: str | None
    home: Path
    providers: Path | None = None  # of this process; a server has its own
    security: ChannelSecurity | None = None  # of the channel to a server; None is what the environment says

    def described(self) -> str:
        if self.server is not None:
            return f"the Runner at {self.server}"
        from promptlooper.embedded.home import shown_database

        return shown_database(self.home)

    def working_on(self, experiment_id: str) -> AbstractContextManager[None]:
        """Says to other processes on the same embedded data that this one works on the experiment."""
        if self.server is not None:
            return nullcontext()
        from promptlooper.embedded.working import working_on

        return working_on(self.home, experiment_id)

    def is_worked_on(self, experiment_id: str) -> bool:
        """Whether a process, this one included, works on an experiment of the embedded data."""
        from promptlooper.embedded.working import worked_on

        return experiment_id in worked_on(self.home)

    def left_alone(self) -> Callable[[Experiment], bool]:
        """Whether an experiment that is read after this call has not ended, and no process works on it. Only of
        embedded data: a server's Runners take up what one of them left."""
        if self.server is not None:
            return lambda experiment: False
        from promptlooper.embedded.working import worked_on

        before = worked_on(self.home)  # and after: one may have begun or ended while it was read

        def alone(experiment: Experiment) -> bool:
            name = experiment.experiment_id
            return experiment.state in _NEED_WORK and name not in before and name not in worked_on(self.home)

        return alone


@asynccontextmanager
async def opened(target: Target, listener: ConnectionListener | None = None) -> AsyncIterator[Experiments]:
    """The Runner there. `listener` hears of the connection to a server. Raises InvalidArgument where the address can't
    be read, StoreUnavailable where the embedded data can't be used."""
    if target.server is not None:
        from promptlooper.clients.runner import connected
        from promptlooper.rpc.security import ChannelSecurity

        security = target.security or ChannelSecurity.from_environment(os.environ)
        async with connected(target.server, security=security, listener=listener) as remote:
            yield remote
    else:
        embedded = needed("promptlooper.embedded.composition", _EMBEDDED, "'promptlooper[local]'").embedded
        async with embedded(target.home, target.providers) as local:
            yield local
