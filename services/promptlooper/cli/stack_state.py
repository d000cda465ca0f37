"""What `up` leaves in the data folder so that `status` and `down` find the stack: a state file and a lock."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import psutil

from promptlooper.cli.stack import Part
from promptlooper.errors import DomainError

STATE_FILE = "up.json"
_LOCK_FILE = "up.lock"
# Start times are computed from the boot time, which moves a little when the clock is set.
_SAME_START_SECONDS = 2.0


class AlreadyRunning(DomainError):
    """Another supervisor owns the data folder."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process by pid and start time (seconds since the epoch), so that a reused pid is not taken for it."""

    pid: int
    started: float

    def exists(self) -> bool:
        """Also as a zombie, which has ended, only its parent has not asked for the exit code yet."""
        return self._found() is not None

    def alive(self) -> bool:
        found = self._found()
        try:
            return found is not None and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def _found(self) -> psutil.Process | None:
        try:
            found = psutil.Process(self.pid)
            return found if abs(found.create_time() - self.started) < _SAME_START_SECONDS else None
        except psutil.NoSuchProcess:
            return None


def process_of(pid: int) -> Process | None:
    """None if it is gone."""
    try:
        return Process(pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


@dataclass(frozen=True, slots=True)
class PartState:
    """A part as it was last seen by the supervisor; `process` is None before its start and after its end."""

    name: str
    kind: str
    address: str
    health_address: str | None
    metrics_address: str | None
    process: Process | None = None


@dataclass(frozen=True, slots=True)
class StackState:
    """`phase` is starting, ready or stopping."""

    phase: str
    supervisor: Process
    log: str | None
    parts: tuple[PartState, ...]

    @property
    def server(self) -> str:
        """What `--server` wants: the addresses of all Runners."""
        return ",".join(part.address for part in self.parts if part.kind == "runner")

    def with_process(self, name: str, process: Process | None) -> StackState:
        return replace(
            self,
            parts=tuple(replace(part, process=process) if part.name == name else part for part in self.parts),
        )


def planned_state(parts: tuple[Part, ...], log: Path | None) -> StackState:
    """Of this process as the supervisor, before anything has started."""
    return StackState(
        phase="starting",
        supervisor=Process(os.getpid(), psutil.Process().create_time()),
        log=str(log) if log else None,
        parts=tuple(
            PartState(part.name, part.kind, part.address, part.health_address, part.metrics_address) for part in parts
        ),
    )


def write_state(data: Path, state: StackState) -> None:
    """Replaces the file in one step, so that a reader never sees half of it."""
    new = data / f"{STATE_FILE}.new"
    new.write_bytes(orjson.dumps(asdict(state), option=orjson.OPT_INDENT_2))
    new.replace(data / STATE_FILE)


def read_state(data: Path) -> StackState | None:
    """None if there is no file. What cannot be read was not written by this version: also None."""
    try:
        document = orjson.loads((data / STATE_FILE).read_bytes())
        return _state_of(document)
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError, KeyError, TypeError):
        return None


def remove_state(data: Path) -> None:
    (data / STATE_FILE).unlink(missing_ok=True)


def _state_of(document: dict[str, Any]) -> StackState:
    parts = tuple(
        PartState(**{**part, "process": Process(**part["process"]) if part["process"] else None})
        for part in document["parts"]
    )
    return StackState(document["phase"], Process(**document["supervisor"]), document["log"], parts)


@contextmanager
def ownership(data: Path) -> Iterator[None]:
    """Holds the folder's lock: one supervisor a folder, and the kernel frees it however that one ends."""
    data.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # A `status` may hold it for an instant to look; that is not a running stack.
        for attempt in range(10):
            if _take(descriptor, fcntl.LOCK_EX):
                break
            time.sleep(0.02 * attempt)
        else:
            raise AlreadyRunning(f"a stack is already running with its data in {str(data)!r}")
        yield
    finally:
        os.close(descriptor)


def is_owned(data: Path) -> bool:
    """Whether a supervisor of this folder lives."""
    try:
        descriptor = os.open(data / _LOCK_FILE, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return not _take(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _take(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
