"""Experiments as callers have them, sent as they are: the Runner reads the file, and asks for those that it names."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import EllipsisType
from typing import Any, TypeVar

from promptlooper.errors import FilesMissing, InvalidArgument, InvalidExperiment, Problem, TooLarge
from promptlooper.experiment import Experiment, ExperimentSpec
from promptlooper.experiments import Experiments
from promptlooper.jsonvalue import Json, json_text
from promptlooper.sources import LARGEST_FILE, PIECE, ExperimentSource, FilePiece, FileReference, RunTarget

T = TypeVar("T")
AnyExperiment = str | os.PathLike[str] | Mapping[str, Any] | ExperimentSpec | ExperimentSource
"""The path of an experiment file, what such a file holds, or an experiment in its normal form."""

Given = ExperimentSpec | ExperimentSource | str
"""An experiment as the Runner takes it; text is the id of one that is stored."""

_OF_A_MAPPING = "experiment.json"


@dataclass(frozen=True, slots=True)
class Submission:
    """An experiment, and the folder that the files which it names lie in."""

    experiment: ExperimentSpec | ExperimentSource
    folder: Path

    async def sent(
        self, experiments: Experiments, call: Callable[[ExperimentSpec | ExperimentSource], Awaitable[T]]
    ) -> T:
        """What the call answers; files that it says are missing are sent. Raises InvalidExperiment where one of them
        can't be."""
        given = self.experiment
        if isinstance(given, ExperimentSpec):
            return await call(given)
        while True:
            try:
                return await call(given)
            except FilesMissing as error:
                known = {file.path for file in given.files}
                paths = [missing.field for missing in error.missing if missing.field not in known]
                if not paths:
                    raise
                files = [await self._uploaded(experiments, given, path) for path in paths]
                given = replace(given, files=(*given.files, *files))

    async def _uploaded(self, experiments: Experiments, source: ExperimentSource, path: str) -> FileReference:
        data = await asyncio.to_thread(_content, self.folder, path, source)
        file = FileReference(path, hashlib.sha256(data).hexdigest(), len(data))
        for offset in range(0, max(1, file.size), PIECE):
            piece = FilePiece(file.sha256, file.size, offset, data[offset : offset + PIECE])
            if (await experiments.upload(piece)).complete:  # also where it was sent before
                break
        return file


async def sent(
    experiments: Experiments, experiment: AnyExperiment | Experiment, call: Callable[[Given], Awaitable[T]]
) -> T:
    """What the call answers, of an experiment that is given or of one that is stored."""
    if isinstance(experiment, Experiment):
        return await call(experiment.experiment_id)
    return await (await asyncio.to_thread(submission, experiment)).sent(experiments, call)


def target(given: Given, row: Json | EllipsisType, variant_id: str) -> RunTarget:
    return RunTarget(given, variant_id) if isinstance(row, EllipsisType) else RunTarget(given, variant_id, row, True)


def submission(experiment: AnyExperiment) -> Submission:
    """Paths in a mapping are relative to the working directory, those in a file to its folder. Raises InvalidArgument
    where it is no experiment, InvalidExperiment where the file can't be read."""
    if isinstance(experiment, ExperimentSpec | ExperimentSource):
        return Submission(experiment, Path.cwd())
    if isinstance(experiment, Mapping):
        try:
            return Submission(ExperimentSource(json_text(experiment), _OF_A_MAPPING), Path.cwd())
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"the experiment holds what JSON cannot: {error}", field="experiment") from error
    if not isinstance(experiment, str | os.PathLike):
        raise InvalidArgument(
            f"an experiment is the path of a file, a mapping or an ExperimentSpec, not {type(experiment).__name__}",
            field="experiment",
        )
    path = Path(experiment).absolute()
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidExperiment([Problem("", f"it cannot be read: {error.strerror}", str(experiment))]) from error
    except UnicodeDecodeError as error:
        raise InvalidExperiment([Problem("", "this is not UTF-8; save it as UTF-8", str(experiment))]) from error
    # Its folder's name too: an experiment without a name may be called by it.
    return Submission(ExperimentSource(text, f"{path.parent.name}/{path.name}"), path.parent)


def _content(folder: Path, path: str, source: ExperimentSource) -> bytes:
    """A server gets what the experiment names, and nothing else that lies in the folder."""
    root = folder.resolve()
    try:
        file = (root / path).resolve()
        if not file.is_relative_to(root) or not _is_named(PurePosixPath(path).name, source.text):
            raise _refused(path, "the Runner asks for it, and the experiment does not name it")
        size = file.stat().st_size
        if size > LARGEST_FILE:
            raise TooLarge(f"the file {path!r} has {size:,} bytes, and at most {LARGEST_FILE:,} can be sent")
        return file.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symlinks
        said = getattr(error, "strerror", None) or str(error)
        raise _refused(path, f"it cannot be read: {said}; the experiment names it") from error


def _is_named(name: str, text: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text) is not None


def _refused(path: str, message: str) -> InvalidExperiment:
    return InvalidExperiment([Problem("", message, path)])
