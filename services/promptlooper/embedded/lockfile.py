"""Files `*.lock` that processes hold locked while they live: a lock ends with its process."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path


def hold(path: Path) -> int:
    """Makes the file and locks it, until the descriptor that comes back is closed."""
    _remove_unfinished(path.parent)
    new = path.with_suffix(".new")
    while True:
        descriptor = os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            new.rename(path)  # only now, so that whoever finds it without a lock knows that its process is dead
            return descriptor
        except FileNotFoundError:  # another process saw it before it was locked, and removed it
            os.close(descriptor)
        except BaseException:
            os.close(descriptor)
            raise


def lock_of_dead(path: Path, how: int) -> int | None:
    """A descriptor, to be closed, that has the lock `how` of a file whose process is dead; None where it lives. Raises
    FileNotFoundError where it has just left."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if not os.fstat(descriptor).st_nlink:
        os.close(descriptor)
        raise FileNotFoundError(path)
    return descriptor


def _remove_unfinished(folder: Path) -> None:
    """What processes left that died in `hold`."""
    for path in folder.glob("*.new"):
        with suppress(FileNotFoundError):
            if (descriptor := lock_of_dead(path, fcntl.LOCK_EX)) is not None:
                path.unlink(missing_ok=True)
                os.close(descriptor)
