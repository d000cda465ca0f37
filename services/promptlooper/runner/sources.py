"""Experiments as clients give them: a spec, or the source of one with the files that it names."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath

import sqlalchemy as sa

from promptlooper.clock import Clock
from promptlooper.errors import (
    FilesMissing,
    InvalidArgument,
    InvalidExperiment,
    Problem,
    ServiceUnavailable,
    TooLarge,
)
from promptlooper.experiment import ExperimentSpec
from promptlooper.experiments import Validation
from promptlooper.runner.spec.files import SentFolder
from promptlooper.runner.spec.normal import completed
from promptlooper.runner.spec.problems import FileProblem, InvalidFile, in_order, of_services
from promptlooper.runner.spec.reading import USUAL_STEM, ReadExperiment, read_text
from promptlooper.runner.store import uploads
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.rows import microseconds
from promptlooper.sources import (
    LARGEST_FILE,
    LARGEST_TEXT,
    PIECE,
    USUAL_PATH,
    ExperimentSource,
    FilePiece,
    Uploaded,
)

MOST_FILES = 1_000
LONG_WORK = 25.0  # seconds: less than callers wait
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Given:
    """An experiment that was given, and where its fields were written."""

    spec: ExperimentSpec
    read: ReadExperiment | None = None  # of a source

    def located(self, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        """The problems with their places in the files of the source."""
        if self.read is None:
            return tuple(problems)
        return tuple(_problem(self.read.located(problem), problem.field) for problem in problems)

    def validation(self, found: Validation) -> Validation:
        return replace(found, problems=self.located(found.problems))


class Sources:
    """Keeps files that were sent, and reads experiments from sources that name them. `check` says what Adapter and
    Scorer have against a spec."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        check: Callable[[ExperimentSpec], Awaitable[Validation]],
        upload_limit: int,
    ) -> None:
        self._database, self._clock, self._check, self._upload_limit = database, clock, check, upload_limit

    async def upload(self, piece: FilePiece) -> Uploaded:
        """Raises InvalidArgument where the piece is none of such a file, or the whole is another; TooLarge where there
        is no room for the file."""
        _check_piece(piece)
        add = partial(uploads.add_piece, piece=piece, now_us=self._now_us(), limit=self._upload_limit)
        kept = await self._database.write(add)
        if isinstance(kept, uploads.OtherContent):
            raise kept
        return kept

    async def given(self, experiment: ExperimentSpec | ExperimentSource) -> Given:
        """Raises InvalidExperiment with all that is wrong with the source, FilesMissing with all that it lacks."""
        if isinstance(experiment, ExperimentSpec):
            return Given(_completed(experiment))
        _check_source(experiment)
        try:
            read = await self._database.read(partial(_read, source=experiment), within=LONG_WORK)
        except InvalidFile as error:
            problems = in_order((*error.problems, *await self._said_by_services(error.partial)), _path_of(experiment))
            raise InvalidExperiment([_problem(problem) for problem in problems]) from None
        if experiment.files:
            names = [file.sha256 for file in experiment.files]
            await self._database.write(partial(uploads.used, sha256s=names, now_us=self._now_us()))
        return Given(_completed(read.spec), read)

    async def _said_by_services(self, read: ReadExperiment | None) -> Sequence[FileProblem]:
        """Also of a file with mistakes of its own: all is said at once."""
        if read is None:
            return ()
        try:
            found = (await self._check(read.spec)).problems
        except ServiceUnavailable:  # the file's own mistakes are no less true
            return ()
        return [read.located(problem) for problem in of_services(found)]

    def _now_us(self) -> int:
        return microseconds(self._clock.now())


def _read(connection: sa.Connection, source: ExperimentSource) -> ReadExperiment:
    path = PurePosixPath(_path_of(source))
    folder = SentFolder(str(path), source.files, partial(uploads.content, connection))
    name = path.parent.name if path.stem == USUAL_STEM else path.stem
    try:
        return read_text(source.text, str(path), name, folder)
    except InvalidFile:
        if folder.missing:  # what they hold may be wrong too, and is said with the rest
            raise _missing(folder.missing) from None
        raise


def _path_of(source: ExperimentSource) -> str:
    return str(PurePosixPath(source.path or USUAL_PATH))


def _missing(missing: Mapping[str, Problem]) -> FilesMissing:
    names = ", ".join(map(repr, sorted(missing)[:10])) + (", …" if len(missing) > 10 else "")
    message = f"the experiment names files that are not here: {names}; send them with UploadFile, and refer to them"
    return FilesMissing(message, missing=[missing[name] for name in sorted(missing)], count=str(len(missing)))


def _problem(found: FileProblem, field: str = "") -> Problem:
    return Problem(field, found.message, found.file, found.line or 0)


def _completed(spec: ExperimentSpec) -> ExperimentSpec:
    try:
        return completed(spec)
    except ValueError as error:
        raise InvalidExperiment([Problem("inputs", str(error))]) from error


def _check_source(source: ExperimentSource) -> None:
    size = len(source.text.encode("utf-8", "replace"))
    if size > LARGEST_TEXT:
        raise TooLarge(
            f"the experiment file has {size:,} bytes, and at most {LARGEST_TEXT:,} are taken; put its rows and long "
            "texts into files of their own"
        )
    if len(source.files) > MOST_FILES:
        raise InvalidArgument(
            f"source.files: at most {MOST_FILES} may be named, not {len(source.files)}", field="source.files"
        )
    for index, file in enumerate(source.files):
        field = f"source.files[{index}]"
        if not file.path or posixpath.isabs(file.path):
            raise InvalidArgument(f"{field}.path: {file.path!r} is not a relative path", field=f"{field}.path")
        _check_content(file.sha256, file.size, f"{field}.")


def _check_content(sha256: str, size: int, prefix: str = "") -> None:
    if not SHA256.fullmatch(sha256):
        raise InvalidArgument(
            f"{prefix}sha256: {sha256[:80]!r} is not 64 lowercase hex digits", field=f"{prefix}sha256"
        )
    if not 0 <= size <= LARGEST_FILE:
        raise InvalidArgument(
            f"{prefix}size: a file may have up to {LARGEST_FILE:,} bytes, not {size:,}", field=f"{prefix}size"
        )


def _check_piece(piece: FilePiece) -> None:
    _check_content(piece.sha256, piece.size)
    if piece.offset % PIECE or not 0 <= piece.offset <= max(0, piece.size - 1):
        raise InvalidArgument(
            f"offset: {piece.offset} is no multiple of {PIECE:,} within the {piece.size:,} bytes of the file",
            field="offset",
        )
    wanted = min(PIECE, piece.size - piece.offset)
    if len(piece.data) != wanted:
        raise InvalidArgument(
            f"data: the piece at {piece.offset:,} has {len(piece.data):,} bytes, and must have {wanted:,}", field="data"
        )
