"""docs/experiments.md: every example is valid, and everything that a file may hold is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from promptlooper.adapter.app import gateway_from
from promptlooper.experiment import CacheMode
from promptlooper.runner.filters import FILTERS
from promptlooper.runner.render import SCORER_ROOTS, StageView
from promptlooper.runner.spec.check_services import check
from promptlooper.runner.spec.pipelines import STAGE_KEYS
from promptlooper.runner.spec.reading import KEYS, LATER_KEYS, read_experiment
from promptlooper.scorer.registry import BUILT_IN, ScorerCore

TEXT = (Path(__file__).parents[3] / "docs" / "experiments.md").read_text()
# ```yaml NAME: the name makes a block a file.
FILES = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
SCORER_TYPES = [scorer.type for scorer in BUILT_IN]
EXPERIMENTS = [name for name in FILES if name.endswith(".yaml")]


def test_every_yaml_block_is_a_file_that_is_checked() -> None:
    assert len(EXPERIMENTS) == TEXT.count("```yaml") >= 7


@pytest.mark.parametrize("name", EXPERIMENTS)
async def test_documented_experiment_is_valid(name: str, tmp_path: Path) -> None:
    for each, text in FILES.items():
        (tmp_path / each).write_text(text)
    spec = read_experiment(tmp_path / name).spec
    async with gateway_from(env={}) as gateway:
        found = await check(spec, gateway, ScorerCore())
    assert found.problems == ()
    said = re.search(r"= (\d+)\.$", TEXT, re.MULTILINE)
    assert said is not None
    assert name != "grid.yaml" or found.runs == int(said[1])


def test_everything_that_a_file_may_hold_is_named() -> None:
    modes = [mode.value for mode in CacheMode]
    names = {*KEYS, *LATER_KEYS, *STAGE_KEYS, *SCORER_TYPES, *SCORER_ROOTS, *StageView.NAMES, *modes}
    assert [name for name in sorted(names) if f"`{name}" not in TEXT] == []
    listed = re.search(r"\*\*Filters\*\*: `([^`]*)`", TEXT)
    assert listed is not None
    assert set(listed[1].split()) == set(FILTERS)


def test_every_scorer_has_an_example() -> None:
    used = {scorer.removeprefix("not-") for scorer in re.findall(r"[a-z-]+(?=:|,)", FILES["scorers.yaml"])}
    assert set(SCORER_TYPES) <= used
