"""A full disk, a reader that leaves, and a folder that can't be used end a command with a sentence or silently."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXPERIMENT = "inputs: [1, 2, 3]\nmodel: mock/echo\nprompt: '{{ input }} {{ \"x\" * 20000 }}'\n"


def promptlooper(folder: Path, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROMPTLOOPER_", "OPENAI_"))}
    kept |= options.pop("env", {})
    options = {"stdout": subprocess.PIPE, **options}
    command = [sys.executable, "-m", "promptlooper.cli.main", *args]
    return subprocess.run(
        command, cwd=folder, env=kept, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ran")
    (folder / "promptlooper.yaml").write_text(EXPERIMENT)
    ran = promptlooper(folder, "run", "-q")
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.mark.parametrize("command", ["export latest", "list --json", "list", "run -q --no-cache"])
def test_full_disk_is_one_line_and_exit_code_1(folder: Path, command: str) -> None:
    with open("/dev/full", "w") as full:
        ended = promptlooper(folder, *command.split(), stdout=full)
    assert ended.returncode == 1
    assert ended.stderr == "Error: The output cannot be written: No space left on device.\n"


@pytest.mark.parametrize(("command", "code"), [("export latest", 0), ("list", 0), ("run -q", 141)])
def test_reader_that_left_ends_a_command_silently(folder: Path, command: str, code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = promptlooper(folder, *command.split(), stdout=writing)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (code, "")


def test_file_on_a_full_disk_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").symlink_to("/dev/full")
    ended = promptlooper(folder, "export", "-o", str(tmp_path / "out.jsonl"))
    assert ended.returncode == 1
    assert ended.stderr == "Error: /dev/full: No space left on device.\n"


def test_database_file_of_something_else_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "promptlooper.db").write_text("garbage\n" * 100)
    ended = promptlooper(tmp_path, "list", env={"PROMPTLOOPER_HOME": str(tmp_path)})
    assert ended.returncode == 1
    assert ended.stderr == (
        "Error: promptlooper.db is not a database of PromptLooper: move it away, "
        "or set PROMPTLOOPER_HOME to another folder.\n"
    )


def test_database_that_cannot_be_opened_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "promptlooper.db").mkdir()
    ended = promptlooper(tmp_path, "list", "--json", env={"PROMPTLOOPER_HOME": str(tmp_path)})
    assert ended.returncode == 1
    error = json.loads(ended.stdout)["error"]
    assert error["reason"] == "STORE_UNAVAILABLE"
    assert error["message"].startswith("promptlooper.db cannot be opened: ")
    assert "PROMPTLOOPER_HOME" in error["message"]


def test_home_that_cannot_be_made_is_named_with_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = promptlooper(tmp_path, "list", env={"PROMPTLOOPER_HOME": str(tmp_path / "file" / "home")})
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: The folder of embedded data cannot be used: ")
    assert "PROMPTLOOPER_HOME" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_wrong_line_of_an_environment_file_is_named_without_its_text(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.env").write_text("A=1\n=secret\n")
    ended = promptlooper(folder, "list", "--env-file", str(tmp_path / "keys.env"))
    assert ended.returncode == 0
    assert ended.stderr == f"{tmp_path / 'keys.env'}:2: this is not NAME=VALUE, and is left out.\n"


def test_wrong_providers_file_gives_its_file_and_line_as_json(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "providers.yaml").write_text("providers:\n  - name: a\n    type: mock\n    foo: 3\n")
    ended = promptlooper(folder, "models", "--json", env={"PROMPTLOOPER_PROVIDERS": str(tmp_path / "providers.yaml")})
    assert ended.returncode == 2
    error = json.loads(ended.stdout)["error"]
    assert (error["file"], error["line"]) == (str(tmp_path / "providers.yaml"), 4)
