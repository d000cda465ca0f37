"""Says to who follows an experiment on a Runner that the connection is lost, and that it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from promptlooper.cli.outcome import Refused
from promptlooper.cli.session import Target
from promptlooper.errors import DomainError, ServiceUnavailable

SILENT_FOR = 3.0  # seconds that a connection may be lost before it is said; a rolling restart takes less


class Connection:
    """A ConnectionListener that tells of what lasts. A loss of a moment changes nothing, and is not said."""

    def __init__(self, target: Target, say: Callable[[str], None]) -> None:
        self._server = target.server or ""
        self._say = say
        self._timer: asyncio.TimerHandle | None = None
        self._said = False

    def lost(self, cut: DomainError, patience: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(SILENT_FOR, self._tell, cut, patience)

    def back(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._said:
            self._said = False
            self._say(f"The connection to {self._server} is back.")

    def _tell(self, cut: DomainError, patience: float) -> None:
        self._said = True
        what = f"The connection to {self._server} is lost"
        if not isinstance(cut, ServiceUnavailable):  # it answers, and can't do anything
            what = f"The Runner at {self._server} cannot go on ({cut.reason})"
        self._say(f"{what}; trying again for up to {patience:.0f} s.")


def given_up(error: ServiceUnavailable, experiment_id: str, target: Target) -> Refused:
    """The end of a command that followed an experiment."""
    again = f"Experiment {experiment_id} may go on: promptlooper watch {experiment_id}{target.option()}"
    return Refused(f"{error.message.rstrip('.')}. {again}", reason=error.reason)
