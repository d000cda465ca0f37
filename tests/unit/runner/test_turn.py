"""What a turn decides: guards, claims, budgets, ends, and the facts it writes down."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from promptlooper.completion import Message
from promptlooper.run import RunError, RunState, StageResult
from promptlooper.runner.claims import MOST_IN_BATCH, Claim
from promptlooper.runner.ledger import Ledger, RunRow
from promptlooper.runner.outcomes import BatchQuestion, Outcome, RunEnded, RunFacts, RunReturned, StageDone
from promptlooper.runner.turn import Turn

ME, NOW = "runner-a", 1_000_000
FACTS = RunFacts("v", "i", 0)


def ledger(**changes: Any) -> Ledger:
    base = Ledger(
        experiment_id="e",
        state="PENDING",
        reason="",
        generation=1,
        total=10,
        next_index=0,
        running=0,
        returned=0,
        completed=0,
        failed=0,
        cancelled=0,
        cached=0,
        max_concurrency=4,
        budget_nanousd=None,
        spent_nanousd=0,
        uncertain_nanousd=0,
        reserved_nanousd=0,
        unit_nanousd=0,
        budget_tokens=None,
        spent_tokens=0,
        uncertain_tokens=0,
        reserved_tokens=0,
        unit_tokens=0,
        tokens_in=0,
        tokens_out=0,
        cost_unknown_calls=0,
        cost_saved_nanousd=0,
        event_seq=0,
        started_us=None,
        ended_us=None,
        timeout_us=None,
        deadline_us=None,
        first_event_seq=1,
    )
    return replace(base, **changes)


def result(stage_index: int = 0, *, cost: int | None = 100, cached: bool = False) -> StageResult:
    return StageResult(
        stage_index=stage_index,
        name="",
        messages=(Message("user", "?"),),
        output="!",
        model="m",
        model_requested="mock/m",
        params={},
        tokens_in=5,
        tokens_out=3,
        tokens_reasoning=None,
        tokens_cached_in=None,
        latency_ms=10,
        ttft_ms=None,
        cost_nanousd=0 if cached else cost,
        cost_saved_nanousd=cost if cached else 0,
        cached=cached,
        attempts=0 if cached else 1,
        finish_reason="stop",
    )


def turned(book: Ledger, outcomes: Sequence[Outcome], rows: dict[int, RunRow], slots: int = 0) -> Turn:
    turn = Turn(book, ME, NOW)
    turn.take(outcomes, rows)
    turn.claim_new(turn.room(slots), ["v"], 1)
    turn.settle(lambda: [row for row in rows.values() if row.state == "PENDING"])
    return turn


def row_of(claim: Claim, **changes: Any) -> RunRow:
    return replace(RunRow(claim.run_index, 0, "RUNNING", ME, claim.lease_epoch, claim.next_stage), **changes)


def completed(run_index: int, epoch: int = 1) -> list[Outcome]:
    return [
        StageDone(run_index, epoch, FACTS, 0, result(), last=True),
        RunEnded(run_index, epoch, FACTS, RunState.COMPLETED, score=1.0),
    ]


def kinds(turn: Turn) -> list[str]:
    return [event.kind for event in turn.events]


def test_a_first_claim_starts_the_experiment_and_respects_slots_and_the_cap() -> None:
    book = ledger()
    turn = turned(book, [], {}, slots=100)
    assert [claim.run_index for claim in turn.claims] == [0, 1, 2, 3]
    assert (book.state, book.running, book.next_index, book.started_us) == ("RUNNING", 4, 4, NOW)
    assert kinds(turn) == ["experiment.started", *["run.started"] * 4]
    assert turned(ledger(), [], {}, slots=2).claims[-1].run_index == 1


def test_outcomes_of_runs_that_another_holds_are_refused_and_change_nothing() -> None:
    book = ledger(state="RUNNING", next_index=3, running=3)
    rows = {
        0: RunRow(0, 0, "RUNNING", "runner-b", 2, 0),
        1: RunRow(1, 0, "RUNNING", ME, 2, 0),
    }
    turn = turned(book, [*completed(0), *completed(1), *completed(2)], rows)
    assert turn.refused == [0, 0, 1, 1, 2, 2]
    assert (turn.touched, turn.stage_results, turn.events, book.completed, book.spent_nanousd) == ({}, [], [], 0, 0)


def test_an_outcome_that_is_stored_already_is_accepted_and_counted_once() -> None:
    book = ledger(state="RUNNING", next_index=1, running=1, total=1, max_concurrency=1)
    rows = {0: RunRow(0, 0, "RUNNING", ME, 1, 0)}
    turned(book, completed(0), rows)
    again = turned(book, completed(0), rows)
    assert again.refused == []
    assert (book.completed, book.running, book.tokens_in, book.spent_nanousd) == (1, 0, 5, 100)


def test_outcomes_of_a_runner_without_a_lease_are_refused_where_its_runs_were_given_back() -> None:
    """Nobody may have claimed them again yet: then they look as after an outcome of their own."""
    book = ledger(state="RUNNING", next_index=1, returned=1)
    rows = {0: RunRow(0, 0, "PENDING", None, 1, 0)}
    turn = Turn(book, ME, NOW, alive=False)
    turn.take(completed(0), rows)
    assert (turn.refused, turn.touched, book.completed) == ([0, 0], {}, 0)


def test_totals_are_exact_and_a_cached_answer_costs_nothing_and_says_what_it_saved() -> None:
    book = ledger(state="RUNNING", next_index=2, running=2, total=2)
    rows = {i: RunRow(i, 0, "RUNNING", ME, 1, 0) for i in range(2)}
    outcomes = [*completed(0), StageDone(1, 1, FACTS, 0, result(cached=True), True)]
    turned(book, [*outcomes, RunEnded(1, 1, FACTS, RunState.COMPLETED)], rows)
    assert (book.spent_nanousd, book.cost_saved_nanousd, book.cached, book.spent_tokens) == (100, 100, 1, 8)
    assert (book.tokens_in, book.tokens_out, book.completed, book.state) == (10, 6, 2, "COMPLETED")


def test_an_unknown_price_is_counted_and_never_taken_for_zero() -> None:
    book = ledger(state="RUNNING", next_index=1, running=1)
    rows = {0: RunRow(0, 0, "RUNNING", ME, 1, 0)}
    turned(book, [StageDone(0, 1, FACTS, 0, result(cost=None), True)], rows)
    assert (book.cost_unknown_calls, rows[0].cost_unknown_calls, book.spent_nanousd) == (1, 1, 0)


def test_a_run_with_stages_left_goes_on_after_its_checkpoint() -> None:
    book = ledger(state="RUNNING", next_index=1, running=1)
    rows = {0: RunRow(0, 0, "RUNNING", ME, 1, 0)}
    turn = turned(book, [StageDone(0, 1, FACTS, 0, result(), last=False)], rows)
    assert [(c.run_index, c.next_stage, c.lease_epoch) for c in turn.continuing] == [(0, 1, 1)]
    assert (book.running, rows[0].state) == (1, "RUNNING")


def test_a_cancelling_experiment_starts_nothing_and_ends_when_nothing_runs() -> None:
    book = ledger(state="CANCELLING", reason="USER", next_index=2, running=2)
    rows = {i: RunRow(i, 0, "RUNNING", ME, 1, 0) for i in range(2)}
    first = turned(book, [StageDone(0, 1, FACTS, 0, result(), last=False)], rows, slots=9)
    assert (first.continuing, first.claims, book.state) == ([], [], "CANCELLING")
    assert kinds(first) == ["run.stage_completed", "run.cancelled"]
    last = turned(book, completed(1), rows, slots=9)
    assert (book.state, book.reason, book.completed, book.cancelled) == ("CANCELLED", "USER", 1, 9)
    assert kinds(last)[-1] == "experiment.cancelled"
    assert turned(book, [], rows, slots=9).events == []


def test_a_parked_run_gives_up_its_slot_and_says_until_when() -> None:
    book = ledger(state="RUNNING", next_index=1, running=1, total=1)
    rows = {0: RunRow(0, 0, "RUNNING", ME, 1, 0)}
    turn = turned(book, [RunReturned(0, 1, FACTS, not_before_us=NOW + 9, why="429")], rows)
    assert kinds(turn) == ["run.waiting"]
    assert (book.running, book.returned, book.state, rows[0].not_before_us) == (0, 1, "RUNNING", NOW + 9)


def test_a_failed_run_keeps_its_reason_and_the_attempts_that_were_made() -> None:
    book = ledger(state="RUNNING", next_index=1, running=1, total=1)
    rows = {0: RunRow(0, 0, "RUNNING", ME, 1, 0)}
    error = RunError("PROVIDER_REJECTED", "no", 0, "think", attempts=3)
    turn = turned(book, [RunEnded(0, 1, FACTS, RunState.FAILED, error=error)], rows)
    assert (rows[0].error, rows[0].attempts, book.failed, book.state) == (error, 3, 1, "COMPLETED")
    assert turn.events[0].detail["error_reason"] == "PROVIDER_REJECTED"


def test_the_budget_admits_only_what_it_can_pay_and_ends_the_experiment() -> None:
    book = ledger(budget_nanousd=250, unit_nanousd=100)
    turn = turned(book, [], {}, slots=9)
    assert len(turn.claims) == 2
    rows = {claim.run_index: row_of(claim, reserved_nanousd=100) for claim in turn.claims}
    turn = turned(book, [*completed(0), *completed(1)], rows, slots=9)
    assert turn.claims == []
    assert (book.state, book.reason, book.spent_nanousd, book.reserved_nanousd) == ("CANCELLED", "BUDGET", 200, 0)
    assert (book.completed, book.cancelled) == (2, 8)


def test_a_run_that_needs_more_keeps_its_place_where_the_budget_admits_it() -> None:
    book = ledger(
        budget_nanousd=1_000, unit_nanousd=100, state="RUNNING", next_index=1, running=1, reserved_nanousd=100
    )
    rows = {0: RunRow(0, 0, "RUNNING", ME, 1, 0, reserved_nanousd=100)}
    turn = Turn(book, ME, NOW)
    turn.take([RunReturned(0, 1, FACTS, need_nanousd=400)], rows)
    assert [(claim.lease_epoch, claim.reserved_nanousd) for claim in turn.continuing] == [(2, 400)]
    assert (book.unit_nanousd, book.returned, book.running, book.reserved_nanousd) == (100, 0, 1, 400)


def test_a_call_whose_answer_was_lost_is_repeated_within_another_reservation() -> None:
    book = ledger(budget_nanousd=350, unit_nanousd=100, state="RUNNING", next_index=1, running=1, reserved_nanousd=100)
    rows = {0: RunRow(0, 0, "RUNNING", ME, 1, 0, reserved_nanousd=100)}
    for times in (1, 2):
        lost = RunReturned(0, times, FACTS, need_nanousd=100, maybe_paid=True)
        for expected in (1, 0):  # the same again, after a commit whose answer was lost, changes nothing
            turn = Turn(book, ME, NOW)
            turn.take([lost], rows)
            assert len(turn.continuing) == expected
            assert (book.uncertain_nanousd, book.reserved_nanousd) == (100 * times, 100)
    turn = Turn(book, ME, NOW)
    turn.take([RunReturned(0, 3, FACTS, need_nanousd=100, maybe_paid=True)], rows)
    assert turn.continuing == []
    assert (book.uncertain_nanousd, book.reserved_nanousd, book.returned) == (300, 0, 1)


def test_a_run_that_needs_more_than_is_left_now_goes_back_and_reserves_it_for_itself_alone() -> None:
    book = ledger(
        budget_nanousd=1_000,
        spent_nanousd=650,
        unit_nanousd=100,
        state="RUNNING",
        next_index=1,
        running=1,
        reserved_nanousd=100,
    )
    rows = {0: RunRow(0, 0, "RUNNING", ME, 1, 0, reserved_nanousd=100)}
    first = Turn(book, ME, NOW)
    first.take([RunReturned(0, 1, FACTS, need_nanousd=400)], rows)
    assert first.continuing == []
    assert (book.unit_nanousd, book.returned, book.reserved_nanousd, rows[0].reserved_nanousd) == (100, 1, 0, 400)
    book.spent_nanousd = 0
    turn = Turn(book, ME, NOW)
    turn.claim_returned([rows[0]])
    turn.claim_new(turn.room(9), ["v"], 1)
    assert [claim.reserved_nanousd for claim in turn.claims] == [400, 100, 100, 100]
    assert book.reserved_nanousd == 700


def test_a_run_that_can_never_be_paid_ends_the_experiment_only_when_nothing_else_can_start() -> None:
    book = ledger(
        budget_nanousd=300, unit_nanousd=100, total=2, state="RUNNING", next_index=1, running=1, reserved_nanousd=100
    )
    rows = {0: RunRow(0, 0, "RUNNING", ME, 1, 0, reserved_nanousd=100)}
    turn = turned(book, [RunReturned(0, 1, FACTS, need_nanousd=900)], rows, slots=9)
    assert [claim.run_index for claim in turn.claims] == [1]
    rows[1] = turn.created[0]
    turned(book, completed(1), rows)
    assert book.state == "RUNNING"
    last = Turn(book, ME, NOW)
    last.claim_returned([rows[0]])
    assert last.settle(lambda: [rows[0]])
    assert (book.state, book.reason, book.completed, book.cancelled) == ("CANCELLED", "BUDGET", 1, 1)


def test_a_call_that_may_be_billed_though_it_failed_keeps_its_reservation_from_the_budget() -> None:
    book = ledger(
        budget_nanousd=1_000, unit_nanousd=100, state="RUNNING", next_index=1, running=1, reserved_nanousd=100
    )
    rows = {0: RunRow(0, 0, "RUNNING", ME, 1, 0, reserved_nanousd=100)}
    error = RunError("DEADLINE_EXCEEDED", "late", 0, attempts=1)
    turned(book, [RunEnded(0, 1, FACTS, RunState.FAILED, error=error, maybe_paid=True)], rows)
    assert (book.uncertain_nanousd, book.reserved_nanousd) == (100, 0)
    assert (book.spent_nanousd, book.cost_unknown_calls) == (0, 0)


def test_a_call_without_usage_spends_its_whole_reservation() -> None:
    book = ledger(
        budget_nanousd=1_000, unit_nanousd=100, state="RUNNING", next_index=1, running=1, reserved_nanousd=100
    )
    rows = {0: RunRow(0, 0, "RUNNING", ME, 1, 0, reserved_nanousd=100)}
    turned(book, [StageDone(0, 1, FACTS, 0, result(cost=None), True)], rows)
    assert (book.spent_nanousd, book.reserved_nanousd) == (100, 0)


@pytest.mark.parametrize("seed", range(200))
def test_no_order_of_outcomes_breaks_the_counts_the_cap_or_the_budget(seed: int) -> None:
    """Random schedules: claims, checkpoints, ends, parks and returns until the experiment ends."""
    chance = random.Random(seed)
    book = ledger(
        total=chance.randint(1, 30),
        max_concurrency=chance.randint(1, 6),
        budget_nanousd=chance.choice([None, 0, 350, 5_000]),
        unit_nanousd=100,
    )
    rows: dict[int, RunRow] = {}
    events: list[str] = []
    for _ in range(2_000):
        running = [row for row in rows.values() if row.state == "RUNNING"]
        outcomes: list[Outcome] = []
        for row in chance.sample(running, chance.randint(0, len(running))):
            index, epoch = row.run_index, row.lease_epoch
            outcomes += chance.choice(
                [
                    completed(index, epoch),
                    [RunEnded(index, epoch, FACTS, RunState.FAILED, error=RunError("INTERNAL", ""))],
                    [RunReturned(index, epoch, FACTS, need_nanousd=chance.randint(0, 120))],
                    [
                        StageDone(
                            index,
                            epoch,
                            FACTS,
                            row.next_stage,
                            result(row.next_stage, cost=chance.randint(0, 100)),
                            last=False,
                        )
                    ],
                ]
            )
        if chance.random() < 0.01 and book.state == "RUNNING":
            book.state = "CANCELLING"
        turn = Turn(book, ME, NOW)
        turn.take(outcomes, rows)
        room = turn.room(chance.randint(0, 8))
        ready = [r for r in rows.values() if r.state == "PENDING" and r.run_index not in turn.touched][:room]
        turn.claim_returned(ready)
        turn.claim_new(room - len(turn.claims), ["v"], 1)
        ended = turn.settle(lambda: [row for row in rows.values() if row.state == "PENDING"])
        rows.update({row.run_index: row for row in turn.created})
        events += kinds(turn)
        running_now = sum(row.state == "RUNNING" for row in rows.values())
        assert book.running == running_now <= book.max_concurrency
        assert book.returned == sum(row.state == "PENDING" for row in rows.values())
        reserved = sum(row.reserved_nanousd for row in rows.values() if row.state == "RUNNING")
        assert book.reserved_nanousd == (0 if book.budget_nanousd is None else reserved)
        assert book.budget_nanousd is None or book.spent_nanousd + book.reserved_nanousd <= book.budget_nanousd
        if ended:
            break
    assert book.ended
    assert book.completed + book.failed + book.cancelled == book.total
    assert sum(kind in ("experiment.completed", "experiment.cancelled") for kind in events) == 1


QUESTION = BatchQuestion(0, "q", "p/m", "{}")
BOUND = {"budget_nanousd": 150, "unit_nanousd": 100, "state": "RUNNING", "next_index": 1}


def waiting_for_its_batch() -> tuple[Ledger, RunRow]:
    book = ledger(**BOUND, running=1, reserved_nanousd=100)
    row = RunRow(0, 0, "RUNNING", ME, 1, 0, reserved_nanousd=100)
    turn = Turn(book, ME, NOW)
    turn.take([RunReturned(0, 1, FACTS, not_before_us=NOW + 9, why="BATCH", item=QUESTION)], {0: row})
    assert [question for _, question in turn.questions] == [QUESTION]
    assert [(event.kind, event.detail["error_reason"]) for event in turn.events] == [("run.waiting", "BATCH")]
    return book, row


def test_a_run_that_waits_for_a_batch_holds_its_reservation_until_it_goes_on() -> None:
    book, row = waiting_for_its_batch()
    assert (book.in_batch, book.returned, book.running, book.reserved_nanousd) == (1, 1, 0, 100)
    turn = Turn(replace(book, budget_nanousd=100), ME, NOW + 9)  # lowered since: its answer may be paid already
    turn.claim_returned([row])
    book = turn.ledger
    assert [claim.reserved_nanousd for claim in turn.claims] == [100]
    assert (book.in_batch, book.returned, book.running, book.reserved_nanousd) == (0, 0, 1, 100)
    assert not row.in_batch


def test_a_run_that_is_cancelled_in_a_batch_may_be_billed() -> None:
    book, row = waiting_for_its_batch()
    turn = Turn(replace(book, state="CANCELLING"), ME, NOW)
    assert turn.settle(lambda: [row])
    book = turn.ledger
    assert (book.in_batch, book.reserved_nanousd, book.uncertain_nanousd) == (0, 0, 100)
    assert (row.state, row.reserved_nanousd, row.in_batch) == ("CANCELLED", 0, False)


def test_no_more_runs_are_begun_than_may_wait_for_batches() -> None:
    turn = Turn(ledger(in_batch=MOST_IN_BATCH - 2, returned=MOST_IN_BATCH - 2), ME, NOW)
    turn.claim_new(4, ["v"], 1)
    assert len(turn.claims) == 2
