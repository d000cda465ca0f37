"""What comes of executing runs: what a turn takes in."""

from __future__ import annotations

from dataclasses import dataclass

from promptlooper.run import RunError, RunState, Score, StageResult


@dataclass(frozen=True, slots=True)
class BatchQuestion:
    """A question for a batch."""

    position: int  # of the call in its run
    item_id: str  # equal questions that may share an answer have the same
    model: str
    request: str  # of batch_texts


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What events say of a run besides its index."""

    variant_id: str
    input_id: str
    repeat: int


@dataclass(frozen=True, slots=True)
class StageDone:
    """A call has its answer. `last`: there is no other one, and a RunEnded follows."""

    run_index: int
    lease_epoch: int
    facts: RunFacts
    position: int  # of the call in its run, from 0
    result: StageResult
    last: bool


@dataclass(frozen=True, slots=True)
class RunEnded:
    """A run completed, failed or was cancelled."""

    run_index: int
    lease_epoch: int
    facts: RunFacts
    state: RunState
    scores: tuple[Score, ...] = ()
    score: float | None = None
    passed: bool | None = None
    error: RunError | None = None
    failed_stage: StageResult | None = None  # what was sent and got no answer
    maybe_paid: bool = False  # a call was given up or broke after it was sent: nobody knows whether it is billed


@dataclass(frozen=True, slots=True)
class RunReturned:
    """A run goes back to be claimed again: parked until a time, or in need of a larger reservation, or handed back."""

    run_index: int
    lease_epoch: int
    facts: RunFacts
    not_before_us: int | None = None
    deadline_us: int | None = None  # of a parked run: when its stage's time is over
    need_nanousd: int = 0
    need_tokens: int = 0
    attempts: int = 0  # HTTP requests that were made
    maybe_paid: bool = False
    why: str = ""  # a name of ErrorReason
    waits_for: str = ""  # which limit: concurrency, rate, quota or pause; "" where the provider was asked
    item: BatchQuestion | None = None  # it waits for a batch with this, and holds what it reserved


Outcome = StageDone | RunEnded | RunReturned
