"""Which experiments of a folder of embedded data some process works on: what is unfinished and not among them was
interrupted."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from promptlooper.embedded import lockfile

FOLDER = "working"


@contextmanager
def working_on(home: Path, experiment_id: str) -> Iterator[None]:
    """Says to all processes that this one works on the experiment, until it leaves or dies: a lock ends with its
    process. Several processes may work on one."""
    folder = home / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{experiment_id}.{secrets.token_hex(4)}.lock"
    descriptor = lockfile.hold(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def worked_on(home: Path) -> frozenset[str]:
    """The experiments that living processes work on, this one included. Forgets what dead ones said."""
    found = set()
    for path in (home / FOLDER).glob("*.lock"):
        with suppress(FileNotFoundError):  # its process has just left
            # Shared, so that two processes that look at once do not take each other for a worker.
            if (descriptor := lockfile.lock_of_dead(path, fcntl.LOCK_SH)) is None:
                found.add(path.name.partition(".")[0])
            else:
                path.unlink(missing_ok=True)
                os.close(descriptor)
    return frozenset(found)
