"""Stacks for tests: one that all share, and one of a test's own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack_lab import CommandLine

PROVIDERS = """\
providers:
  - {name: slow, type: mock, script: [{echo: true, delay: 1.5}]}
"""


@pytest.fixture(scope="session")
def stack() -> Iterator[CommandLine]:
    """A stack that is up and healthy, shared by tests that do it no harm. `slow/any` answers after 1.5 s."""
    # Not pytest's folder: that of a session is kept.
    folder = Path(tempfile.mkdtemp(prefix="promptlooper-stack-"))
    promptlooper = CommandLine(folder, {"OPENAI_API_KEY": "sk-only-for-the-adapter"})
    try:
        (folder / "providers.yaml").write_text(PROVIDERS)
        started = promptlooper("up", "-d", "--port-base", "0", "--providers", "providers.yaml")
        assert started.returncode == 0, started.stderr
        yield promptlooper
    finally:
        promptlooper("down")
        shutil.rmtree(folder)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[CommandLine]:
    """A command line in an empty folder; whatever stack is left there is stopped."""
    promptlooper = CommandLine(tmp_path)
    yield promptlooper
    promptlooper("down")
