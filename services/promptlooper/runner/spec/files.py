"""Files beside an experiment: read, never from outside its folder."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Protocol

from promptlooper.errors import Problem
from promptlooper.sources import FileReference

MAX_TEXT_BYTES = 4 << 20
MAX_DATA_BYTES = 512 << 20
MAX_SENT_BYTES = 256 << 20  # of all that one source names: a short text may name a long one a thousand times


class FileRefused(Exception):
    """A file that cannot be used; the message is a sentence."""


class Folder(Protocol):
    """The folder of an experiment file."""

    def shown(self, name: str) -> str:
        """How messages call the file."""
        ...

    def read(self, name: str, limit: int = MAX_TEXT_BYTES) -> bytes:
        """Raises FileRefused."""
        ...


class DiskFolder:
    """The folder in which an experiment file lies. Messages call files as the experiment file is called: relative to
    where the user stands."""

    def __init__(self, experiment: Path) -> None:
        self._parent = experiment.parent
        self._root = self._parent.resolve()
        self._experiment = experiment.name

    def shown(self, name: str) -> str:
        return str(self._parent / name)

    def read(self, name: str, limit: int = MAX_TEXT_BYTES) -> bytes:
        _check_name(name, self._experiment)
        try:
            path = (self._root / name).resolve()
            if not path.is_relative_to(self._root):
                raise _outside(name, self._experiment)
            if not path.exists():
                raise FileRefused(f"there is no file {name!r} beside {self._experiment!r}")
            if not path.is_file():
                raise FileRefused(f"{name!r} is not a file")
            _check_size(name, path.stat().st_size, limit)
            return path.read_bytes()
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symlinks
            raise FileRefused(
                f"the file {name!r} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from error


class SentFolder:
    """Files that were sent with an experiment's source. `missing` are those that it names and that are not there."""

    def __init__(
        self, experiment: str, files: Iterable[FileReference], content: Callable[[FileReference], bytes | None]
    ) -> None:
        self._experiment = PurePosixPath(experiment)
        self._files = {posixpath.normpath(file.path): file for file in files}
        self._content = content
        self.missing: dict[str, Problem] = {}
        self._left = MAX_SENT_BYTES

    def shown(self, name: str) -> str:
        return str(self._experiment.parent / name)

    def read(self, name: str, limit: int = MAX_TEXT_BYTES) -> bytes:
        _check_name(name, self._experiment.name)
        path = posixpath.normpath(name)
        if path == ".." or path.startswith("../"):
            raise _outside(name, self._experiment.name)
        if (file := self._files.get(path)) is None:
            raise self._lacks(path, "send it with UploadFile, and refer to it in the source")
        _check_size(name, file.size, limit)
        self._left -= file.size
        if self._left < 0:
            raise FileRefused(f"with {name!r} the files have more than {MAX_SENT_BYTES:,} bytes, counted each time")
        if (content := self._content(file)) is None:
            raise self._lacks(path, "it is not here, or not all of it: send all its pieces with UploadFile")
        return content

    def _lacks(self, path: str, message: str) -> FileRefused:
        self.missing[path] = Problem(path, message)
        return FileRefused(f"the file {path!r} was not sent")


def _check_name(name: str, experiment: str) -> None:
    if not name.strip() or "\0" in name:
        raise FileRefused(f"{name!r} is not the name of a file")
    if Path(name).is_absolute():
        raise FileRefused(f"the path {name!r} must be relative to {experiment!r}")


def _outside(name: str, experiment: str) -> FileRefused:
    return FileRefused(f"the file {name!r} is outside the folder of {experiment!r}; move it there")


def _check_size(name: str, size: int, limit: int) -> None:
    if size > limit:
        raise FileRefused(f"the file {name!r} has {size:,} bytes, at most {limit:,} are allowed")
