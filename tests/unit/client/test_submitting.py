"""What is sent of an experiment: the file as it is, and of its folder only what it names."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from promptlooper.client.submitting import Submission, submission
from promptlooper.errors import FilesMissing, InvalidArgument, InvalidExperiment, Problem
from promptlooper.sources import PIECE, ExperimentSource, FilePiece, Uploaded


@dataclass
class AskingRunner:
    """Asks for files until it has them, as a Runner does; keeps the pieces that it gets."""

    wanted: tuple[str, ...]
    pieces: list[FilePiece] = field(default_factory=list)
    calls: int = 0

    async def create(self, given: Any) -> ExperimentSource:
        self.calls += 1
        known = {file.path for file in given.files}
        if missing := [path for path in self.wanted if path not in known]:
            raise FilesMissing("files are missing", missing=[Problem(path, "send it") for path in missing])
        assert isinstance(given, ExperimentSource)
        return given

    async def upload(self, piece: FilePiece) -> Uploaded:
        self.pieces.append(piece)
        sent = piece.offset + len(piece.data)
        return Uploaded(sent, sent == piece.size)


async def sent(sending: Submission, *wanted: str) -> tuple[ExperimentSource, AskingRunner]:
    runner = AskingRunner(wanted)
    return await sending.sent(runner, runner.create), runner  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    (folder / "data").mkdir(parents=True)
    (folder / "promptlooper.yaml").write_text(
        "inputs: {file: data/rows.csv}\nprompt: {file: ask.txt} # my.env, .envelope"
    )
    (folder / ".env").write_text("OPENAI_API_KEY=secret")
    return folder


async def test_files_are_sent_in_pieces_and_referred_to(folder: Path) -> None:
    rows = b"x" * (2 * PIECE + 3)
    (folder / "data/rows.csv").write_bytes(rows)
    (folder / "ask.txt").write_bytes(b"")
    source, runner = await sent(submission(folder / "promptlooper.yaml"), "data/rows.csv", "ask.txt")
    assert source.path == "demo/promptlooper.yaml"
    assert [(file.path, file.size) for file in source.files] == [("data/rows.csv", len(rows)), ("ask.txt", 0)]
    assert b"".join(piece.data for piece in runner.pieces) == rows
    assert [piece.offset for piece in runner.pieces] == [0, PIECE, 2 * PIECE, 0]
    assert runner.calls == 2


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".env", "the experiment does not name it"),
        ("../secret.txt", "the experiment does not name it"),
        ("ask.txt", "it cannot be read: No such file"),
    ],
)
async def test_a_runner_gets_no_other_files(folder: Path, path: str, message: str) -> None:
    (folder.parent / "secret.txt").write_text("secret")
    with pytest.raises(InvalidExperiment, match=message):
        await sent(submission(str(folder / "promptlooper.yaml")), path)


async def test_a_runner_that_asks_again_for_what_it_has_got_is_not_asked_for_ever(folder: Path) -> None:
    (folder / "ask.txt").write_text("hello")

    async def create(given: Any) -> None:
        raise FilesMissing("still missing", missing=[Problem("ask.txt", "send it")])

    with pytest.raises(FilesMissing, match="still missing"):
        await submission(folder / "promptlooper.yaml").sent(AskingRunner(()), create)  # type: ignore[arg-type]


async def test_paths_in_a_mapping_are_relative_to_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "ask.txt").write_text("hello")
    source, runner = await sent(submission({"model": "mock/echo", "prompt": {"file": "ask.txt"}}), "ask.txt")
    assert source.text == '{"model":"mock/echo","prompt":{"file":"ask.txt"}}'
    assert source.path == "experiment.json"
    assert [piece.data for piece in runner.pieces] == [b"hello"]


@pytest.mark.parametrize(
    ("experiment", "error", "message"),
    [
        (7, InvalidArgument, "the path of a file, a mapping or an ExperimentSpec, not int"),
        ({"metadata": {"at": datetime}}, InvalidArgument, "holds what JSON cannot"),
        ("gone.yaml", InvalidExperiment, "gone.yaml: it cannot be read: No such file"),
        (b"gone.yaml", InvalidArgument, "not bytes"),
    ],
)
def test_what_is_no_experiment_is_refused(experiment: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        submission(experiment)
