"""What a Runner goes on with: runs that it has claimed."""

from __future__ import annotations

from dataclasses import dataclass

from promptlooper.run import StageResult

MOST_IN_BATCH = 100_000  # runs of an experiment that wait for batches: bounds what is stored of their questions


@dataclass(frozen=True, slots=True)
class BatchItem:
    """What has become of a run's question: WAITING or SUBMITTED, ANSWERED or FAILED with a text of batch_texts
    as `result`, or to be asked DIRECT."""

    position: int
    state: str
    result: str = ""
    shared: bool = False  # another run pays


@dataclass(frozen=True, slots=True)
class Claim:
    """A run to go on with: `next_stage` calls have an answer, and `results` are these, where this Runner lacks them."""

    run_index: int
    lease_epoch: int
    next_stage: int
    reserved_nanousd: int | None  # None without such a budget
    reserved_tokens: int | None
    deadline_us: int | None = None  # when the stage's time is over, where waiting took some of it
    run_deadline_us: int | None = None  # when the run's time is over
    results: tuple[StageResult, ...] = ()
    item: BatchItem | None = None  # of a call that goes by a batch: what has become of it
