"""`promptlooper init`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_init_writes_an_experiment_and_refuses_to_overwrite_it(promptlooper: Any, tmp_path: Path) -> None:
    assert promptlooper("init", "new").exit_code == 0
    path = tmp_path / "new" / "promptlooper.yaml"
    path.write_text("mine")
    result = promptlooper("init", "new")
    assert result.exit_code == 2
    assert "is there already" in result.stderr
    assert path.read_text() == "mine"
