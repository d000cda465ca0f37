"""Files that change under a running process: certificates, keys, tokens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from promptlooper.errors import InvalidArgument

T = TypeVar("T")
LOOK_EVERY = 1.0  # seconds; a look costs a `stat` of each file

_log = logging.getLogger(__name__)


class Reloaded(Generic[T]):
    """What `read` makes of the files' contents, made again when one of them has changed.

    `read` raises InvalidArgument for what it can't take. At first that goes to the caller; later the old value stays,
    and the log says so. `what` names it in both. Another thread may ask as well.
    """

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        read: Callable[[list[bytes]], T],
        *,
        look_every: float = LOOK_EVERY,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._paths = paths
        self._read = read
        self._look_every = look_every
        self._monotonic = monotonic
        self._looked = monotonic()
        self._seen = self._signature()
        self._value = self._made()

    def current(self) -> T:
        now = self._monotonic()
        if now - self._looked >= self._look_every:
            self._looked = now
            seen = self._signature()
            if seen != self._seen:
                self._seen = seen  # before it is read: what changes meanwhile is seen the next time
                self._reload()
        return self._value

    def _reload(self) -> None:
        try:
            self._value = self._made()
        except InvalidArgument as error:
            _log.error("a changed file can't be taken, what was read before stays: %s", error)
        else:
            _log.info("%s changed and was read again", self._what)

    def _made(self) -> T:
        data = [contents(path, self._what) for path in self._paths]
        try:
            return self._read(data)
        except InvalidArgument as error:
            raise InvalidArgument(f"{self._what}: {error}") from None

    def _signature(self) -> list[tuple[int, int, int] | None]:
        return [_signature(path) for path in self._paths]


def contents(path: Path, what: str) -> bytes:
    """Raises InvalidArgument where the file can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{what}: {str(path)!r} can't be read: {error.strerror}") from None


def secret(path: Path, what: str) -> str:
    """The text of a file that holds one secret, without space around it. Raises InvalidArgument where there is none."""
    data = contents(path, what)
    try:
        return secret_of(data)
    except InvalidArgument as error:
        raise InvalidArgument(f"{what} in {str(path)!r}: {error}") from None


def secret_of(data: bytes) -> str:
    text = data.decode("utf-8", "replace").strip()
    if not text or not text.isprintable() or not text.isascii():
        raise InvalidArgument("the file must hold one line of ASCII text, and nothing else")
    return text


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
