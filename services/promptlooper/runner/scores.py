"""Scoring of finished runs: values are rendered here, scorers see plain ones, runs of one tick share a call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from promptlooper.batching import TickBatcher
from promptlooper.errors import DomainError, TemplateError
from promptlooper.experiment import ScorerSpec
from promptlooper.failpoints import Failpoints
from promptlooper.run import Score, StageResult
from promptlooper.runner.render import Renderer
from promptlooper.runner.verdict import run_passed, run_score, score_of
from promptlooper.scoring import ScoreItem, ScorerCall, ScoreValue, ScoringService
from promptlooper.tracing import current

log = logging.getLogger("runner.scores")
TRIES, PAUSE, LONGEST_PAUSE = 10, 0.2, 5.0  # while the Scorer can't be reached: about half a minute


class Scores:
    def __init__(
        self, scoring: ScoringService, renderer: Renderer, *, failpoints: Failpoints | None = None, gather: float = 0.0
    ) -> None:
        self._scoring, self._renderer, self._failpoints = scoring, renderer, failpoints or Failpoints()
        self._score = TickBatcher(self._score_batch, gather=gather)

    async def aclose(self) -> None:
        """When nobody waits for scores: does not wait for a Scorer that is away."""
        await self._score.cancel()

    async def of(
        self, specs: Sequence[ScorerSpec], results: Sequence[StageResult], values: Mapping[str, object]
    ) -> tuple[tuple[Score, ...], float | None, bool | None]:
        """The scores of a run, its score and whether it passed. What goes wrong with a scorer is in its score."""
        if not specs:
            return (), None, None
        said: list[ScoreValue | None] = [None] * len(specs)
        calls: list[tuple[int, ScorerCall]] = []
        for index, spec in enumerate(specs):
            try:
                output = self._renderer.text(spec.output, values) if spec.output else None
                calls.append(
                    (index, ScorerCall(spec.type, self._renderer.value(spec.value, values), spec.settings, output))
                )
            except TemplateError as error:
                said[index] = ScoreValue(None, error=error.message)
        if calls:
            item = ScoreItem(
                results[-1].output if results else "",
                tuple(call for _, call in calls),
                sum(result.latency_ms for result in results),
                _cost(results),
                current.get(),
            )
            for (index, _), value in zip(calls, await self._score(item), strict=True):
                said[index] = value
        scores = tuple(score_of(spec, value or ScoreValue(None)) for spec, value in zip(specs, said, strict=True))
        return scores, run_score(scores), run_passed(specs, scores)

    async def _score_batch(self, items: Sequence[ScoreItem]) -> Sequence[Sequence[ScoreValue]]:
        """What is wrong with one item must not cost the others their scores: a batch that is refused is halved."""
        pause = PAUSE
        for left in reversed(range(TRIES)):
            try:
                self._failpoints.hit("score_before")
                scored = await self._scoring.score(items)
                self._failpoints.hit("score_after")
                return [_complete(item, values) for item, values in zip(items, scored, strict=True)]
            except Exception as error:
                retryable = isinstance(error, DomainError) and error.retryable
                if not retryable and len(items) > 1:
                    half = len(items) // 2
                    return [*await self._score_batch(items[:half]), *await self._score_batch(items[half:])]
                if not retryable or not left:
                    trace = None if isinstance(error, DomainError) else error
                    log.warning("the Scorer failed, %d runs have no scores: %s", len(items), error, exc_info=trace)
                    said = ScoreValue(None, error=f"not scored: {_why(error)}")
                    return [[said] * len(item.calls) for item in items]
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        raise AssertionError("the last try returns")


def _why(error: Exception) -> str:
    if isinstance(error, DomainError):
        return error.message
    return f"the Scorer failed ({type(error).__name__}); see the log"


def _complete(item: ScoreItem, values: Sequence[ScoreValue]) -> Sequence[ScoreValue]:
    """One value for each call; a Scorer may be anyone's."""
    missing = ScoreValue(None, error="the Scorer gave no value")
    return [*values[: len(item.calls)], *[missing] * (len(item.calls) - len(values))]


def _cost(results: Sequence[StageResult]) -> int | None:
    """What the answers cost when they were paid for, cached or not; None where one is unknown."""
    total = 0
    for result in results:
        price = result.cost_saved_nanousd if result.cached else result.cost_nanousd
        if price is None:
            return None
        total += price
    return total
