"""Result files: their formats, and writing them whole or not at all."""

from __future__ import annotations

import csv
import io
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import orjson

from promptlooper.cli.later import not_available_yet
from promptlooper.cli.outcome import USAGE, Refused
from promptlooper.experiments import Experiments
from promptlooper.flat_rows import CsvLayout, columns_of
from promptlooper.rows import run_row, summary_document


class Format(Enum):
    JSONL = ".jsonl"
    JSON = ".json"
    CSV = ".csv"


_LATER = (".parquet", ".html", ".junit.xml")


@dataclass(frozen=True, slots=True)
class OutputFile:
    path: Path
    format: Format


def output_file(text: str) -> OutputFile:
    """The file and, by its extension, the format. Refuses what could not be written, before anything has run."""
    later = next((extension for extension in _LATER if text.lower().endswith(extension)), None)
    if later is not None:
        raise not_available_yet(f"Writing {later} files", "take .jsonl, .json or .csv")
    known = next((each for each in Format if text.lower().endswith(each.value)), None)
    if known is None:
        raise Refused(
            f"{text!r} has no extension that says its format: take .jsonl, .json or .csv.",
            reason="INVALID_ARGUMENT",
            code=USAGE,
        )
    path = Path(os.path.realpath(text))  # a link stays, its target is replaced
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        if not _is_special(path):
            trial = _beside(path)
            os.close(_created(trial))
            trial.unlink()
    except OSError as error:
        raise Refused(f"{text!r} cannot be written: {error.strerror}.", reason="INVALID_ARGUMENT", code=USAGE) from None
    return OutputFile(path, known)


def _is_special(path: Path) -> bool:
    """A pipe or device is written to, never replaced."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _created(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # as the umask wants it


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of writing do not know what was written to."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when everything is in it; after an error the old one is still there."""
    if _is_special(path):
        with _named(path), path.open("wb") as special:
            yield special
        return
    partial = _beside(path)
    try:
        with _named(path), os.fdopen(_created(partial), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


async def write_results(experiments: Experiments, experiment_id: str, file: OutputFile) -> None:
    with written(file.path) as stream:
        await write_format(experiments, experiment_id, file.format, stream)


async def write_format(experiments: Experiments, experiment_id: str, format: Format, stream: BinaryIO) -> None:
    """All rows by run_index, one at a time: memory does not grow with their number."""
    if format is Format.CSV:
        await _write_csv(experiments, experiment_id, stream)
        return
    if format is Format.JSONL:
        async for run in experiments.export(experiment_id):
            stream.write(orjson.dumps(run_row(run), option=orjson.OPT_APPEND_NEWLINE))
        return
    summary = await experiments.summarize(experiment_id)
    stream.write(b'{"summary":' + orjson.dumps(summary_document(summary)) + b',"runs":[')
    separator = b"\n"
    async for run in experiments.export(experiment_id):
        stream.write(separator + orjson.dumps(run_row(run)))
        separator = b",\n"
    stream.write(b"\n]}\n")


async def _write_csv(experiments: Experiments, experiment_id: str, stream: BinaryIO) -> None:
    """Two passes: the first finds the keys of the inputs, because the columns must stand before the first row."""
    columns = columns_of(await experiments.summarize(experiment_id))
    async for run in experiments.export(experiment_id):
        columns.saw_input(run.input)
    layout = CsvLayout(columns)
    text = io.TextIOWrapper(stream, "utf-8", newline="")
    try:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(layout.header)
        async for run in experiments.export(experiment_id):
            writer.writerow(layout.cells(run_row(run)))
    finally:
        text.detach()  # flushes, and leaves the stream open
