"""Which experiments of a folder of embedded data some process works on: what is unfinished and not among them was
interrupted."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = "working"


@contextmanager
def working_on(home: Path, experiment_id: str) -> Iterator[None]:
    """Says to all processes that this one works on the experiment, until it leaves or dies: a lock ends with its
    process. Several processes may work on one."""
    folder = home / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{experiment_id}.{secrets.token_hex(4)}.lock"
    new = path.with_suffix(".new")
    descriptor = os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        new.rename(path)  # only now, so that whoever finds it without a lock knows that its process is dead
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def worked_on(home: Path) -> frozenset[str]:
    """The experiments that living processes work on, this one included. Forgets what dead ones said."""
    found = set()
    for path in (home / FOLDER).glob("*.lock"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:  # its process has just left
            continue
        try:
            # Shared, so that two processes that look at once do not take each other for a worker.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            found.add(path.name.partition(".")[0])
        finally:
            os.close(descriptor)
    return frozenset(found)
