"""`promptlooper down`: stops the stack and waits until nothing of it runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import click
import psutil

from promptlooper.cli.data_folder import data_option
from promptlooper.cli.outcome import Refused
from promptlooper.cli.stack_state import STATE_FILE, Process, StackState, is_owned, read_state, remove_state

# Parts are stopped one kind after another, each with up to 25 s.
_PATIENCE_SECONDS = 120.0
_KILL_SECONDS = 10.0
# The supervisor's parent may be the first process of the machine, which is sometimes slow to ask for exit codes.
_REAP_SECONDS = 2.0
_POLL_SECONDS = 0.05


@click.command()
@data_option
def down(data: Path) -> None:
    """Stop the stack. What it stored stays. Where none is running, says so and exits with 0."""
    state = _state(data)
    running = is_owned(data)
    found = living = _living(state) if state is not None else []
    if running and state is not None:
        click.echo(f"Stopping {len(state.parts)} parts …", err=True)
        _signal([state.supervisor], signal.SIGTERM)
        living = _wait(living, _PATIENCE_SECONDS)
        if living:  # a part may have been started again since we read what there is
            living = _living(read_state(data) or state)
    left = bool(living)
    _signal(living, signal.SIGKILL)
    living = _wait(living, _KILL_SECONDS)
    if living or is_owned(data):
        pids = ", ".join(str(process.pid) for process in living) or "the supervisor, or a new one was started"
        raise Refused(f"These processes did not end: {pids}.", reason="STILL_RUNNING")
    remove_state(data)
    _wait_until(lambda: not any(process.exists() for process in found), _REAP_SECONDS)
    if running:
        click.echo("Stopped." if not left else "Stopped; some parts had to be killed.")
    elif left:
        click.echo("The stack had crashed; what was left of it is stopped.")
    else:
        click.echo(f"No stack is running with its data in {str(data)!r}.")


def _state(data: Path) -> StackState | None:
    """None where nothing runs and nothing is left. A supervisor that is starting writes its state in a moment."""
    until = time.monotonic() + _KILL_SECONDS
    while (state := read_state(data)) is None and is_owned(data):
        if time.monotonic() > until:
            raise Refused(
                f"A stack is running with its data in {str(data)!r}, but {STATE_FILE!r} there cannot be read. "
                "End its processes by hand: `ps` shows them with `promptlooper` in their command lines.",
                reason="STILL_RUNNING",
            )
        time.sleep(_POLL_SECONDS)
    return state


def _living(state: StackState) -> list[Process]:
    """The supervisor, its parts, and what those started."""
    known = [state.supervisor, *(part.process for part in state.parts if part.process is not None)]
    found = {process.pid: process for process in known if process.alive()}
    for process in list(found.values()):
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                found.setdefault(child.pid, Process(child.pid, child.create_time()))
    return list(found.values())


def _wait(processes: Iterable[Process], seconds: float) -> list[Process]:
    """Those that are still there after it."""
    living: list[Process] = []

    def ended() -> bool:
        living[:] = [process for process in processes if process.alive()]
        return not living

    _wait_until(ended, seconds)
    return living


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)


def _signal(processes: Iterable[Process], number: signal.Signals) -> None:
    for process in processes:
        if process.alive():
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
