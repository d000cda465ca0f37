"""Ten thousand runs, through every revision of the tables and back. Takes some minutes. `make faults` runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from migration_lab import check_there_and_back
from runner_lab import Lab

from promptlooper.runner.store.migrate import upgrade

pytestmark = pytest.mark.timeout(900)


async def test_ten_thousand_runs_are_the_same_after_every_revision_and_back(database_url: str, tmp_path: Path) -> None:
    upgrade(database_url)
    await check_there_and_back(Lab(database_url, tmp_path), 10_000)
