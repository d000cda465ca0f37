"""Runs share calls of the Scorer, and none of them has to suffer for another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from promptlooper.errors import DomainError, NotAvailableYet, ServiceUnavailable, TooLarge
from promptlooper.experiment import ScorerSpec
from promptlooper.run import Score
from promptlooper.runner.render import Renderer
from promptlooper.runner.scores import Scores
from promptlooper.scoring import ScoreItem, ScoreValue, ScoringService
from promptlooper.testing.eventually import eventually

SPECS = (ScorerSpec("named", "equals", output="{{ output }}"), ScorerSpec("other", "equals"))


class Scoring(ScoringService):
    """Refuses a call with an output in `bad`."""

    def __init__(self, *bad: str, error: Exception | None = None) -> None:
        self.bad, self.error = bad, error or TooLarge("a message is too large")
        self.sizes: list[int] = []

    async def score(self, items: Sequence[ScoreItem]) -> list[list[ScoreValue]]:
        self.sizes.append(len(items))
        if any(item.calls[0].output in self.bad for item in items):
            raise self.error
        return [[ScoreValue(1.0, call.output or "") for call in item.calls] for item in items]


@asynccontextmanager
async def scores_of(scoring: ScoringService) -> AsyncIterator[Scores]:
    scores = Scores(scoring, Renderer())
    try:
        yield scores
    finally:
        await scores.aclose()


async def scored(scoring: ScoringService, count: int) -> list[tuple[Score, ...]]:
    """The scores of runs that end in the same moment."""
    async with scores_of(scoring) as scores:
        all_of_them = [scores.of(SPECS, (), {"output": str(n)}) for n in range(count)]
        return [found for found, _, _ in await asyncio.gather(*all_of_them)]


@pytest.mark.parametrize("error", [TooLarge("a message is too large"), DomainError("it failed"), TypeError("no")])
async def test_run_that_the_scorer_refuses_leaves_the_others_their_scores(error: Exception) -> None:
    scoring = Scoring("77", "200", error=error)
    found = await scored(scoring, 256)
    assert [n for n, (named, other) in enumerate(found) if named.error and other.error] == [77, 200]
    assert (found[77][0].error or "").startswith("not scored: ")
    answered = [(n, named.explanation) for n, (named, other) in enumerate(found) if named.value == other.value == 1.0]
    assert answered == [(n, str(n)) for n in range(256) if n not in (77, 200)]
    assert len(scoring.sizes) < 50


async def test_runs_that_a_scorer_refuses_one_and_all_say_why() -> None:
    found = await scored(Scoring("0", "1", "2", error=NotAvailableYet("it is no Scorer")), 3)
    assert [score.error for scores in found for score in scores] == ["not scored: it is no Scorer"] * 6


async def test_runs_that_are_not_refused_share_one_call() -> None:
    scoring = Scoring()
    assert len(await scored(scoring, 256)) == 256
    assert scoring.sizes == [256]


async def test_scores_that_nobody_waits_for_any_more_do_not_hold_up_a_runner_that_leaves() -> None:
    """A Scorer that is away is tried for half a minute, which is longer than the grace of a service."""

    scoring = Scoring("0", error=ServiceUnavailable("no scorer answers", address="scorer:7054"))
    async with scores_of(scoring) as scores:
        run = asyncio.create_task(scores.of(SPECS, (), {"output": "0"}))
        await eventually(lambda: scoring.sizes)
        run.cancel()
        await asyncio.wait([run])
    assert scoring.sizes == [1]
