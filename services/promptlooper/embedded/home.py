"""The folder of embedded data: what it holds, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptlooper.errors import StoreUnavailable

DATABASE, CACHE, RUNNERS = "promptlooper.db", "cache.db", "runners"
_ELSEWHERE = "set PROMPTLOOPER_HOME to another folder"


def database_path(home: Path) -> Path:
    return home / DATABASE


def shown_database(home: Path) -> str:
    """Its path, relative where that is shorter."""
    path = str(database_path(home))
    near = os.path.relpath(path)
    return path if near.startswith("..") else near


@contextmanager
def said_of(home: Path) -> Iterator[None]:
    """Raises StoreUnavailable for what is wrong with the folder, with what to do."""
    from sqlalchemy.exc import DatabaseError

    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        what = f"The folder of embedded data cannot be used: {error.filename}: {error.strerror}"
        raise StoreUnavailable(f"{what}; {_ELSEWHERE}.") from error
    except StoreUnavailable as error:
        what = f"{shown_database(home)} cannot be opened: {error.message}"
        raise StoreUnavailable(f"{what}. If it is not in use, {_ELSEWHERE}.") from error
    except DatabaseError as error:
        if "not a database" not in str(error.orig):
            raise
        what = f"{shown_database(home)} is not a database of PromptLooper"
        raise StoreUnavailable(f"{what}: move it away, or {_ELSEWHERE}.") from error
