"""Experiments that fault tests run."""

from __future__ import annotations

from typing import Any

from runner_lab import experiment, stage

from promptlooper.experiment import CacheMode, CachePolicy, ExperimentSpec, ModelEntry, Pipeline, ScorerSpec

MAX_CONCURRENCY = 24


def three_stages(
    runs: int,
    *,
    name: str = "faults",
    mark: str = "",
    cache: CacheMode = CacheMode.OFF,
    max_concurrency: int = MAX_CONCURRENCY,
    **settings: Any,
) -> ExperimentSpec:
    """Each stage uses the one before; `mark` is in every question, so that equal experiments do not share them."""
    stages = (
        stage(f"first {mark}{{{{ input.n }}}}"),
        stage(f"second {mark}{{{{ input.n }}}} after {{{{ prev_output }}}}", "middle"),
        stage(f"third {mark}{{{{ input.n }}}} after {{{{ stages.middle.output }}}}"),
    )
    return experiment(
        rows=[{"n": n} for n in range(runs)],
        pipelines=(Pipeline("direct", stages, (ModelEntry("m", "openai/any"),)),),
        name=name,
        cache=CachePolicy(cache),
        limits={"max_concurrency": max_concurrency, **settings.pop("limits", {})},
        scorers=(ScorerSpec("third", "contains", f"third {mark}{{{{ input.n }}}}", threshold=1),),
        **settings,
    )
