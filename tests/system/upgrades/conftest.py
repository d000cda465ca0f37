from pathlib import Path

import pytest
from runner_lab import Lab

from promptlooper.runner.store.migrate import upgrade


@pytest.fixture
def lab(database_url: str, tmp_path: Path) -> Lab:
    upgrade(database_url)
    return Lab(database_url, tmp_path)
