"""After a commit whose answer was lost: what was stored, and what this Runner holds."""

from __future__ import annotations

from collections.abc import Sequence

from promptlooper.runner.claims import Claim
from promptlooper.runner.held import HeldRuns
from promptlooper.runner.outcomes import Outcome, StageDone


def adopted(
    sent: Sequence[Outcome], later: Sequence[Outcome], stored: Sequence[Claim], held: HeldRuns
) -> tuple[list[Outcome], list[Claim]]:
    """`sent` is what the commit was about, `later` what has been reported since, `stored` what the database says that
    this Runner holds. Returns the outcomes to send again, those that were not stored, and the claims to go on with:
    what this Runner did not know that it holds, or does not work on. Gives held runs their stored results."""
    claims = {claim.run_index: claim for claim in stored}
    waiting = {outcome.run_index for outcome in (*sent, *later)}
    taken_up: list[Claim] = []
    kept: list[Outcome] = []
    for outcome in sent:
        claim = claims.get(outcome.run_index)
        if claim is not None and _is_stored(outcome, claim):
            if (known := held.get(outcome.run_index)) is not None:
                known.results = claim.results
            taken_up.append(claim)
        else:
            kept.append(outcome)
    for run_index, claim in claims.items():
        known = held.get(run_index)
        if run_index not in waiting and (known is None or known.task is None):
            taken_up.append(claim)
    return kept, taken_up


def _is_stored(outcome: Outcome, claim: Claim) -> bool:
    """Whether it is in the database already: the run has been claimed again since, or it is a stage after which the run
    goes on."""
    if claim.lease_epoch > outcome.lease_epoch:
        return True
    return isinstance(outcome, StageDone) and not outcome.last and claim.next_stage > outcome.position
