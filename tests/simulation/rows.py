"""What simulations read of the store's tables, by the names of its columns."""

from __future__ import annotations

from typing import NamedTuple

ENDED = frozenset({"COMPLETED", "CANCELLED", "FAILED"})


class ProgressRow(NamedTuple):
    experiment_id: str
    state: str
    reason: str
    generation: int
    total: int
    next_index: int
    running: int
    returned: int
    completed: int
    failed: int
    cancelled: int
    max_concurrency: int
    budget_nanousd: int | None
    spent_nanousd: int
    uncertain_nanousd: int
    reserved_nanousd: int
    unit_nanousd: int
    budget_tokens: int | None
    spent_tokens: int
    uncertain_tokens: int
    reserved_tokens: int
    unit_tokens: int
    tokens_in: int
    tokens_out: int
    cost_unknown_calls: int
    event_seq: int

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def counted(self, what: str) -> int:
        """Of nanousd or tokens: what the budget may not give out again."""
        spent, uncertain = getattr(self, f"spent_{what}"), getattr(self, f"uncertain_{what}")
        return int(spent + uncertain + getattr(self, f"reserved_{what}"))


class RunRow(NamedTuple):
    run_index: int
    state: str
    owner: str | None
    lease_epoch: int
    next_stage: int
    reserved_nanousd: int
    reserved_tokens: int
    run_deadline_us: int | None
    ended_us: int | None
    score: float | None
    passed: bool | None
    error_json: str | None


class SeenEvent(NamedTuple):
    event_seq: int
    kind: str
    generation: int
    run_index: int | None
    stage_index: int | None
