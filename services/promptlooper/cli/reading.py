"""An experiment file, with what is wrong in it as `file:line: message`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from promptlooper.cli.outcome import USAGE, Refused
from promptlooper.cli.session import Session
from promptlooper.cli.signals import run_interruptibly
from promptlooper.errors import DomainError, Problem

if TYPE_CHECKING:
    from promptlooper.experiment import ExperimentSpec
    from promptlooper.runner.spec.overrides import Overrides
    from promptlooper.runner.spec.reading import ReadExperiment


@dataclass(frozen=True, slots=True)
class Place:
    file: str
    line: int | None  # None: of no line in particular
    message: str

    def __str__(self) -> str:
        return f"{self.shown_file}:{self.line}: {self.message}" if self.line else f"{self.shown_file}: {self.message}"

    @property
    def shown_file(self) -> str:
        """Relative where that is shorter, so that editors and people find it."""
        if not os.path.isabs(self.file):
            return self.file
        near = os.path.relpath(self.file)
        return self.file if near.startswith("..") else near


def read_file(path: Path, overrides: Overrides, session: Session | None = None) -> ReadExperiment:
    """Raises Refused with everything that is wrong at once: also what the Runner of the session says of the models and
    scorers in a file that has other mistakes, where a Runner can be asked."""
    from promptlooper.runner.spec.problems import InvalidFile
    from promptlooper.runner.spec.reading import read_experiment

    try:
        return read_experiment(path, overrides)
    except InvalidFile as error:
        places = [Place(problem.file, problem.line, problem.message) for problem in error.problems]
        if session is not None and error.partial is not None:
            places += places_of(_said_by_runner(session, error.partial.spec), error.partial)
        raise refused(places) from None


def _said_by_runner(session: Session, spec: ExperimentSpec) -> Sequence[Problem]:
    try:
        return run_interruptibly(_problems(session, spec))
    except DomainError:  # a Runner that can't be asked makes the file's own problems no less true
        return ()


async def _problems(session: Session, spec: ExperimentSpec) -> Sequence[Problem]:
    from promptlooper.runner.spec.problems import of_services

    async with session.open() as experiments:
        return of_services((await experiments.validate(spec)).problems)


def places_of(problems: Sequence[Problem], read: ReadExperiment) -> list[Place]:
    """What a Runner says of fields, said of lines."""
    found = map(read.located, problems)
    return [Place(problem.file, problem.line, problem.message) for problem in found]


def refused(places: Iterable[Place]) -> Refused:
    """One line each, in the order of the file; the file itself before those that it names."""
    unique = list(dict.fromkeys(places))
    files = list(dict.fromkeys(place.file for place in unique))
    ordered = sorted(unique, key=lambda place: (files.index(place.file), place.line or 0))
    return Refused(
        "\n".join(map(str, ordered)),
        reason="INVALID_EXPERIMENT",
        code=USAGE,
        file=ordered[0].shown_file,
        line=ordered[0].line,
        located=True,
    )
