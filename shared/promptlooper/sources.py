"""Experiments as their authors wrote them: the text of a file, and the files that it names, which are sent apart."""

from __future__ import annotations

from dataclasses import dataclass, field

from promptlooper.completion import Message, Tool
from promptlooper.experiment import ExperimentSpec
from promptlooper.jsonvalue import Json, JsonObject

PIECE = 1024 * 1024  # bytes of each piece of a file but the last
LARGEST_FILE = 64 * PIECE
UPLOADS = 10 * 1024 * PIECE  # bytes that a Runner keeps of all files, unless its settings say otherwise
LARGEST_TEXT = 3 * 1024 * 1024
USUAL_PATH = "promptlooper.yaml"


@dataclass(frozen=True, slots=True)
class FileReference:
    """A file that was sent, or is to be: its path as the experiment file names it, and what it holds."""

    path: str
    sha256: str  # 64 lowercase hex digits
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class ExperimentSource:
    """`path` is what problems call the file; `.json` is JSON, all else YAML."""

    text: str
    path: str = USUAL_PATH
    files: tuple[FileReference, ...] = ()


@dataclass(frozen=True, slots=True)
class FilePiece:
    """A piece of the file of that SHA-256 and size; it begins at `offset`, a multiple of PIECE."""

    sha256: str
    size: int
    offset: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Uploaded:
    received_bytes: int
    complete: bool


@dataclass(frozen=True, slots=True)
class RunTarget:
    """One run: of which experiment (its spec, its source, or the id of a stored one), with which variant and on which
    row, where that is not plain."""

    experiment: ExperimentSpec | ExperimentSource | str
    variant_id: str = ""
    row: Json = None  # as in an experiment file
    has_row: bool = False  # null is a row too


@dataclass(frozen=True, slots=True)
class RenderedStage:
    stage_index: int
    name: str
    model: str
    params: JsonObject
    messages: tuple[Message, ...]
    problem: str = ""  # why there are none: a template that needs more of an output than a placeholder has
    tools: tuple[Tool, ...] = ()
    tool_choice: str = ""
    response_schema: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class RenderedRun:
    run_index: int
    runs: int  # of the grid
    variant_id: str
    label: str
    input_id: str
    repeat: int
    stages: tuple[RenderedStage, ...]
