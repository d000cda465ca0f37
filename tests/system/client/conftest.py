"""One real Runner for all tests of a module, and the folder of an experiment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_lab import CAPITALS, runner_on_the_wire


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with runner_on_the_wire(tmp_path_factory.mktemp("runner")) as address:
        yield address


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with an experiment in it. No variable says where a Runner is."""
    for name in [name for name in os.environ if name.startswith("PROMPTLOOPER_")]:
        monkeypatch.delenv(name)
    (tmp_path / "capitals.yaml").write_text(CAPITALS)
    monkeypatch.chdir(tmp_path)
    return tmp_path
