"""Files beside an experiment: read, never from outside its folder."""

from __future__ import annotations

from pathlib import Path

MAX_TEXT_BYTES = 4 << 20
MAX_DATA_BYTES = 512 << 20


class FileRefused(Exception):
    """A file that cannot be used; the message is a sentence."""


class Folder:
    """The folder of an experiment file."""

    def __init__(self, experiment: Path) -> None:
        self._parent = experiment.parent
        self._root = self._parent.resolve()
        self._experiment = experiment.name

    def shown(self, name: str) -> str:
        """How messages call the file: relative to where the user stands, as the experiment file is."""
        return str(self._parent / name)

    def read(self, name: str, limit: int = MAX_TEXT_BYTES) -> bytes:
        if not name.strip() or "\0" in name:
            raise FileRefused(f"{name!r} is not the name of a file")
        if Path(name).is_absolute():
            raise FileRefused(f"the path {name!r} must be relative to {self._experiment!r}")
        try:
            path = (self._root / name).resolve()
            if not path.is_relative_to(self._root):
                raise FileRefused(f"the file {name!r} is outside the folder of {self._experiment!r}; move it there")
            if not path.exists():
                raise FileRefused(f"there is no file {name!r} beside {self._experiment!r}")
            if not path.is_file():
                raise FileRefused(f"{name!r} is not a file")
            size = path.stat().st_size
            if size > limit:
                raise FileRefused(f"the file {name!r} has {size:,} bytes, at most {limit:,} are allowed")
            return path.read_bytes()
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symlinks
            raise FileRefused(
                f"the file {name!r} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from error
