"""What is wrong with a file, and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from promptlooper.errors import Problem

if TYPE_CHECKING:
    from promptlooper.runner.spec.reading import ReadExperiment


@dataclass(frozen=True, slots=True)
class FilePosition:
    file: str  # as the user named it, or the flag that said it
    line: int | None = None  # from 1; None where there is none

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class FileProblem:
    """One thing that is wrong with an experiment file, a file that it names, or a flag."""

    file: str
    line: int | None
    message: str

    def __str__(self) -> str:
        return f"{FilePosition(self.file, self.line)}: {self.message}"


class InvalidFile(Exception):
    """An experiment file that cannot be used, with everything that is wrong with it.

    `partial` is what could be read all the same: enough to ask for the problems of its models and scorers too.
    """

    def __init__(self, problems: Sequence[FileProblem], partial: ReadExperiment | None = None) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)
        self.partial = partial


def in_order(problems: Iterable[FileProblem], path: str) -> list[FileProblem]:
    """Each once: those of the experiment file itself first, by line, then those of the files that it names."""
    return sorted(dict.fromkeys(problems), key=lambda p: (p.file != path, p.file, p.line or 0))


def of_services(problems: Iterable[Problem]) -> list[Problem]:
    """Of what is said of a partial spec, only what is about models and scorers: what else it lacks was said of the file
    already."""
    return [problem for problem in problems if problem.field.endswith(".model") or problem.field.startswith("scorers[")]


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or "" where nothing is near."""
    names = [n for n in names if n]
    close = difflib.get_close_matches(name, names, 1) or difflib.get_close_matches(
        name.lower(), [n for n in names if n == n.lower()], 1
    )
    return f"; did you mean {close[0]!r}?" if close else ""


def choices(names: Iterable[str]) -> str:
    """`'a', 'b' or 'c'`."""
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
