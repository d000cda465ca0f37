"""What reading finds out beside the values: what is wrong, and where each field of the normal form comes from."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from promptlooper.document import Document, Path
from promptlooper.errors import Problem
from promptlooper.runner.spec.problems import FilePosition, FileProblem, nearest

_PART = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
_LATER = "is not available yet"


def path_of(field: str) -> Path:
    """`a.b[1].c` as ("a", "b", 1, "c")."""
    return tuple(int(index) if index else name for index, name in _PART.findall(field))


class Notes:
    """Paths are keys of the document; fields are names in the normal form, as problems from a server have them."""

    def __init__(self, file: str, document: Document) -> None:
        self.file = file
        self.document = document
        self.problems: list[FileProblem] = [FileProblem(file, line, text) for line, text in document.problems]
        self.unread: set[str] = set()  # sections of which something is missing, and scorers[i].value without its file
        self.lost_scorers: set[str] = set()  # names that scorers have, or meant to have, that could not be read
        self._flags: dict[Path, str] = {}
        self._origins: dict[Path, Path | FilePosition] = {}

    def add(self, path: Path, message: str) -> None:
        self.add_at(self.position(path), message)

    def add_at(self, position: FilePosition, message: str) -> None:
        if position.file == self.file and any(
            line == position.line and repr(text) in message for line, text in self.document.unusable
        ):
            return  # only because of what was said of that value already
        problem = FileProblem(position.file, position.line, message)
        if problem not in self.problems:
            self.problems.append(problem)

    def said_by(self, path: Path, flag: str) -> None:
        """A part of the document that a flag put there."""
        self._flags[path] = flag

    def came_from(self, field: str, origin: Path | FilePosition) -> None:
        self._origins[path_of(field)] = origin

    def position(self, path: Path) -> FilePosition:
        for length in range(len(path), 0, -1):
            if flag := self._flags.get(path[:length]):
                return FilePosition(flag)
        return FilePosition(self.file, self.document.line(path))

    def origin(self, field: str) -> FilePosition:
        path = path_of(field)
        for length in range(len(path), 0, -1):
            found = self._origins.get(path[:length])
            if isinstance(found, FilePosition):
                return found
            if found is not None:
                return self.position((*found, *path[length:]))
        return self.position(path)

    def keep(self, field: str, kept: Sequence[int]) -> None:
        """After items of a list were left out: item i is what was kept[i]."""
        path = path_of(field)
        moved = {old: new for new, old in enumerate(kept)}
        depth = len(path)
        origins: dict[Path, Path | FilePosition] = {}
        for key, origin in self._origins.items():
            if key[:depth] != path or len(key) == depth:
                origins[key] = origin
            elif isinstance(key[depth], int) and key[depth] in moved:
                origins[(*path, moved[key[depth]], *key[depth + 1 :])] = origin  # type: ignore[index]
        self._origins = origins

    def check_keys(
        self, path: Path, mapping: Mapping[str, object], known: Collection[str], later: Collection[str], where: str
    ) -> None:
        for key in mapping:
            if key in later:
                self.add((*path, key), f"{key!r} {_LATER}")
            elif key not in known:
                self.add((*path, key), f"{key!r} is not a key of {where}{nearest(key, (*known, *later))}")

    def located(self, problem: Problem) -> FileProblem:
        position = self.origin(problem.field)
        return FileProblem(position.file, position.line, problem.message)
