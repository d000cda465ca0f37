"""Experiment files written into a folder of the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from promptlooper.experiment import ExperimentSpec
from promptlooper.runner.spec.overrides import Overrides
from promptlooper.runner.spec.problems import InvalidFile
from promptlooper.runner.spec.reading import ReadExperiment, read_experiment

Write = Callable[..., Path]


class Desk:
    """A folder with an experiment file in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def read(self, text: str, overrides: Overrides | None = None, name: str = "e.yaml") -> ReadExperiment:
        return read_experiment(self.write(name, text), overrides)

    def spec(self, text: str, overrides: Overrides | None = None) -> ExperimentSpec:
        return self.read(text, overrides).spec

    def problems(self, text: str, overrides: Overrides | None = None, name: str = "e.yaml") -> list[str]:
        """`file:line: sentence` of each problem, with the file's name only."""
        with pytest.raises(InvalidFile) as caught:
            self.read(text, overrides, name)
        return [str(problem).removeprefix(f"{self.folder}/") for problem in caught.value.problems]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)
