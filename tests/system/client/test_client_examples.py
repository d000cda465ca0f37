"""The examples of docs/python.md and of the client's docstrings, as a reader would type them."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from types import ModuleType

import pytest

from promptlooper import client
from promptlooper.client import async_client, sync_client

PAGE = Path(__file__).parents[3] / "docs/python.md"
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.fixture(autouse=True)
def _server(address: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTLOOPER_SERVER", address)


def test_the_page_is_true(here: Path) -> None:
    text = PAGE.read_text()
    [experiment] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (here / "capitals.yaml").write_text(experiment)
    found = doctest.DocTestParser().get_doctest(text.replace("```", ""), {}, "python.md", str(PAGE), 0)
    assert len(found.examples) > 15
    assert doctest.DocTestRunner(optionflags=OPTIONS).run(found).failed == 0


@pytest.mark.parametrize("module", [client, async_client, sync_client])
def test_docstrings_are_true(module: ModuleType) -> None:
    done = doctest.testmod(module, optionflags=OPTIONS)
    assert (done.failed, done.attempted > 1) == (0, True)
