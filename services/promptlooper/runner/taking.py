"""Turns of one experiment on the database, one at a time."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from promptlooper.errors import ExperimentNotFound, StoreUnavailable
from promptlooper.run import RunError, RunState
from promptlooper.runner.outcomes import Outcome, RunEnded
from promptlooper.runner.store.rows import microseconds
from promptlooper.runner.store.turns import TurnRequest, TurnResult, turn

if TYPE_CHECKING:
    from promptlooper.runner.engine import EngineParts

log = logging.getLogger("runner.loop")


class Turns:
    """Takes turns, and tells the hub where they made events."""

    def __init__(self, experiment_id: str, parts: EngineParts) -> None:
        self._experiment_id, self._parts = experiment_id, parts
        self._event_seq = -1  # of the newest event

    async def take(self, request: TurnRequest) -> TurnResult:
        """Raises StoreUnavailable where nobody knows whether it was done."""
        parts = self._parts
        now_us, began = microseconds(parts.clock.now()), parts.clock.monotonic()
        parts.failpoints.hit("turn_before")
        if request.outcomes:
            parts.failpoints.hit("checkpoint_before")
        result = await parts.database.write(partial(turn, request=request, now_us=now_us, failpoints=parts.failpoints))
        parts.failpoints.hit("turn_after_commit")
        parts.counts.turned(request.outcomes, result, parts.clock.monotonic() - began)
        if result.claims:
            parts.failpoints.hit("claim_after_commit")
        if result.stored:
            parts.failpoints.hit("checkpoint_after_commit")
        if result.ledger.ended:
            parts.failpoints.hit("terminal_after_commit")
        if result.ledger.event_seq != self._event_seq:
            self._event_seq = result.ledger.event_seq
            parts.hub.advanced(self._experiment_id)
        return result

    async def take_or_isolate(self, request: TurnRequest) -> TurnResult:
        """A turn; where the database refuses something in it, a turn per run, and only the run that can't be stored
        fails."""
        try:
            return await self.take(request)
        except (StoreUnavailable, ExperimentNotFound):
            raise
        except Exception:
            if not request.outcomes:
                raise
            log.exception("experiment %s: a turn failed, its runs are stored one by one", self._experiment_id)
        outcomes: dict[int, list[Outcome]] = {}
        for outcome in request.outcomes:
            outcomes.setdefault(outcome.run_index, []).append(outcome)
        results: list[TurnResult] = []
        for run_index, said in outcomes.items():
            alone = replace(request, outcomes=said, slots=0)
            try:
                results.append(await self.take(alone))
            except (StoreUnavailable, ExperimentNotFound):
                raise
            except Exception as error:
                told = f"the result could not be stored ({type(error).__name__}); see the Runner's log"
                failed = RunEnded(
                    run_index, said[0].lease_epoch, said[0].facts, RunState.FAILED, error=RunError("INTERNAL", told)
                )
                results.append(await self.take(replace(request, outcomes=[failed], slots=0)))
        continuing = [claim for result in results for claim in result.continuing]
        refused = [run_index for result in results for run_index in result.refused]
        return replace(results[-1], continuing=continuing, refused=refused)
