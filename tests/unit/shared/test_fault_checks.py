"""The checker of the fault tests finds what it is there for: each promise, broken by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fault_checks import (
    Told,
    Watched,
    answer_problems,
    calls_of,
    check,
    committed_by_clock,
    event_problems,
    known_commits,
    most_open,
    result_problems,
    row_problems,
    total_problems,
    watch_problems,
)
from fault_lab import Death, answer_to

from promptlooper.completion import Message
from promptlooper.experiment import Experiment, ExperimentState, RunCounts
from promptlooper.experiments import WatchMessage
from promptlooper.run import Event, Run, RunState, StageResult
from promptlooper.testing.provider import ProviderCall

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KINDS: Sequence[tuple[str, int | None, dict[str, Any]]] = (
    ("experiment.created", None, {}),
    ("experiment.started", None, {}),
    ("run.started", 0, {}),
    ("run.started", 1, {}),
    ("run.stage_completed", 0, {"stage_index": 0}),
    ("run.stage_completed", 1, {"stage_index": 0}),
    ("run.completed", 0, {}),
    ("run.completed", 1, {}),
    ("experiment.completed", None, {}),
)


def numbered(kinds: Sequence[tuple[str, int | None, dict[str, Any]]] = KINDS) -> list[Event]:
    return [
        Event("x", seq, "default", kind, NOW + timedelta(seconds=seq), 1, run_index, detail)
        for seq, (kind, run_index, detail) in enumerate(kinds, 1)
    ]


def question(run_index: int) -> str:
    return f"question {run_index}"


def a_run(run_index: int) -> Run:
    stage = StageResult(
        stage_index=0,
        name="",
        messages=(Message("user", question(run_index)),),
        output="fine",
        model="m",
        model_requested="m",
        params={},
        tokens_in=3,
        tokens_out=2,
        tokens_reasoning=None,
        tokens_cached_in=None,
        latency_ms=5,
        ttft_ms=None,
        cost_nanousd=7,
        cost_saved_nanousd=0,
        cached=False,
        attempts=1,
        finish_reason="stop",
    )
    return Run(
        run_id=f"x-{run_index}",
        experiment_id="x",
        project="default",
        generation=1,
        run_index=run_index,
        state=RunState.COMPLETED,
        input_index=run_index,
        input_id=str(run_index),
        variant_id="v",
        pipeline="direct",
        model="m",
        params={},
        repeat=0,
        input=None,
        expected=None,
        output="fine",
        score=None,
        passed=None,
        scores=(),
        error=None,
        tokens_in=3,
        tokens_out=2,
        tokens_reasoning=0,
        tokens_cached_in=0,
        cost_nanousd=7,
        cost_saved_nanousd=0,
        latency_ms=5,
        duration_ms=5,
        cached=False,
        attempts=1,
        stages=(stage,),
        tags=(),
        metadata={},
        created_at=NOW,
        started_at=NOW,
        completed_at=NOW,
    )


EXPERIMENT = Experiment(
    "x",
    "default",
    "x",
    ExperimentState.COMPLETED,
    RunCounts(total=2, completed=2),
    NOW,
    tokens_in=6,
    tokens_out=4,
    cost_nanousd=14,
    event_seq=len(KINDS),
)
TOLD = Told(EXPERIMENT, [a_run(0), a_run(1)], numbered())


def a_watch(events: Sequence[Event], start: int = 1) -> Watched:
    messages = [WatchMessage("", start, snapshot=EXPERIMENT)]
    messages += [WatchMessage("", event.event_seq, event=event) for event in events if event.event_seq > start]
    messages.append(WatchMessage("", events[-1].event_seq, terminal=EXPERIMENT))
    return Watched(messages, [float(number) for number in range(len(messages))])


def test_what_was_promised_passes() -> None:
    check(
        event_problems(TOLD.events),
        row_problems(TOLD),
        watch_problems(a_watch(TOLD.events), TOLD.events),
        result_problems(TOLD.runs, TOLD.runs),
    )


def test_all_that_is_broken_is_said_at_once() -> None:
    with pytest.raises(AssertionError, match="2 promises are broken:\none\ntwo"):
        check(["one"], [], ["two"])


def inserted(position: int, kind: str, run_index: int | None, **detail: Any) -> list[Event]:
    return numbered([*KINDS[:position], (kind, run_index, detail), *KINDS[position:]])


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([*numbered()[:4], *numbered()[5:]], "not gapless: 6 comes in place of 5"),
        (numbered()[1:], "the first event is not experiment.created"),
        (numbered(KINDS[:-1]), "generation 1 has 0 terminal events"),
        (inserted(8, "experiment.cancelled", None), "generation 1 has 2 terminal events"),
        (inserted(9, "run.started", 2), "or they are not its last"),
        (inserted(2, "experiment.started", None), "the experiment started 2 times"),
        (inserted(4, "run.started", 1), "run 1 started twice"),
        (inserted(7, "run.failed", 0), "run 0: run.failed (event 8) after run.completed"),
        (inserted(6, "run.stage_completed", 0, stage_index=0), "run 0: stage 0 completed after stages [0]"),
        (inserted(2, "run.stage_completed", 0, stage_index=0), "run 0: run.stage_completed before it started"),
        ([*numbered(), replace(numbered()[-1], event_seq=10, generation=0)], "generations go back"),
    ],
)
def test_events_that_break_a_promise_are_found(events: list[Event], says: str) -> None:
    assert any(says in problem for problem in event_problems(events)), event_problems(events)


def test_a_generation_that_was_paused_may_end_with_the_next() -> None:
    first = numbered([*KINDS[:4], ("experiment.paused", None, {})])
    resumed = numbered([*KINDS[:4], ("experiment.paused", None, {}), ("experiment.resumed", None, {}), *KINDS[4:]])
    second = [replace(event, generation=2) for event in resumed[len(first) :]]
    assert event_problems([*first, *second]) == []
    assert event_problems(first) != []


def test_a_failed_run_may_be_retried_in_a_later_generation() -> None:
    kinds = [*KINDS[:6], ("run.failed", 0, {}), ("run.completed", 1, {}), KINDS[-1]]
    first = numbered(kinds)
    later: list[tuple[str, int | None, dict[str, Any]]] = [
        ("experiment.resumed", None, {}),
        ("run.completed", 0, {}),
        KINDS[-1],
    ]
    second = [replace(event, generation=2) for event in numbered([*kinds, *later])[len(kinds) :]]
    assert event_problems([*first, *second]) == []


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (replace(TOLD, runs=[a_run(0), a_run(0)]), "a run has two rows"),
        (replace(TOLD, runs=[a_run(0)]), "counts.completed is 2, by the rows 1"),
        (replace(TOLD, experiment=replace(EXPERIMENT, tokens_out=5)), "tokens_out is 5, by the rows 4"),
        (replace(TOLD, experiment=replace(EXPERIMENT, cost_nanousd=21)), "cost_nanousd is 21, by the rows 14"),
        (replace(TOLD, experiment=replace(EXPERIMENT, cost_unknown_calls=1)), "cost_unknown_calls is 1, by the rows 0"),
        (replace(TOLD, runs=[replace(a_run(0), cost_nanousd=None), a_run(1)]), "run 0: its cost is unknown"),
        (
            replace(TOLD, runs=[replace(a_run(0), cost_nanousd=8), a_run(1)]),
            "run 0: cost_nanousd is 8, of its stages 7",
        ),
        (replace(TOLD, experiment=replace(EXPERIMENT, cost_reserved_nanousd=1)), "cost_reserved_nanousd is 1"),
        (replace(TOLD, experiment=replace(EXPERIMENT, event_seq=8)), "event_seq is 8, there are 9 events"),
        (replace(TOLD, experiment=replace(EXPERIMENT, state=ExperimentState.RUNNING)), "the experiment is RUNNING"),
        (replace(TOLD, runs=[replace(a_run(0), state=RunState.FAILED), a_run(1)]), "is FAILED, its last event run.com"),
        (replace(TOLD, runs=[replace(a_run(0), stages=()), a_run(1)]), "run 0: 0 answers stored, 1 told"),
        (replace(TOLD, runs=[replace(a_run(0), tokens_in=9), a_run(1)]), "run 0: tokens_in is 9, of its stages 3"),
        (replace(TOLD, events=[e for e in numbered() if e.kind != "run.completed"]), "has no event of its end"),
    ],
)
def test_rows_that_break_a_promise_are_found(told: Told, says: str) -> None:
    assert any(says in problem for problem in row_problems(told)), row_problems(told)


def test_a_watch_that_loses_repeats_or_ends_early_is_found() -> None:
    events = numbered()
    lost = a_watch([*events[:4], *events[5:]])
    repeated = a_watch([*events[:4], events[3], *events[4:]])
    unended = Watched(a_watch(events).messages[:-1], [])
    for watched, says in (
        (lost, "6 comes in place of 5"),
        (repeated, "4 comes in place of 5"),
        (unended, "those at [] are terminal"),
        (Watched(), "does not begin with a snapshot"),
    ):
        assert any(says in problem for problem in watch_problems(watched, events)), watch_problems(watched, events)


def test_another_result_is_found() -> None:
    assert result_problems([a_run(0)], [a_run(0), a_run(1)]) == ["1 runs in place of 2"]
    (problem,) = result_problems([a_run(0), replace(a_run(1), output="else")], TOLD.runs)
    assert problem.startswith("run 1 has")


def test_other_totals_are_found_and_what_was_saved_counts_as_cost() -> None:
    assert total_problems(replace(EXPERIMENT, cost_nanousd=7, cost_saved_nanousd=7), EXPERIMENT) == []
    assert total_problems(replace(EXPERIMENT, cost_nanousd=15, tokens_in=7), EXPERIMENT) == [
        "tokens_in is 7, undisturbed 6",
        "cost_nanousd with what was saved is 15, undisturbed 14",
    ]
    stage = replace(a_run(0).stages[0], cost_nanousd=8)
    assert result_problems([replace(a_run(0), stages=(stage,))], [a_run(0)]) != []


def test_an_answer_that_is_not_the_provider_s_is_found() -> None:
    stage = replace(a_run(0).stages[0], output=answer_to(question(0)))
    good = replace(a_run(0), stages=(stage,), output=stage.output)
    assert answer_problems([good]) == []
    (problem,) = answer_problems([replace(good, output="fine")])
    assert problem == "run 0 has 'fine', its last stage '<question 0>'"
    (problem,) = answer_problems([replace(good, stages=(*good.stages, stage))])
    assert problem == "run 0: 'question 0' is not asked with the answer of stage 0"
    assert any("as the answer to" in problem for problem in answer_problems([a_run(0)]))
    assert answer_problems([replace(good, state=RunState.FAILED)]) == ["run 0 is FAILED"]


COMMITTED = {(0, 0): 10.0, (1, 0): 10.0}


def calls(*extra: ProviderCall) -> list[ProviderCall]:
    return [answered(0, "a", 1.0), answered(1, "b", 1.0), *extra]


def answered(run_index: int, asker: str, started: float) -> ProviderCall:
    return ProviderCall(question(run_index), asker, started, started + 1, started + 1)


def test_a_call_is_excused_by_the_death_of_who_made_it() -> None:
    again = answered(0, "b", 5.0)
    found = calls_of(calls(again), [Death("a", 3.0, 3.0)], TOLD.runs, COMMITTED)
    assert (found.questions, found.calls, found.repeated, found.bound, found.problems) == (2, 3, 1, 1, ())


def test_a_frozen_runner_may_make_the_calls_that_it_had_claimed() -> None:
    frozen = Death("a", 3.0, 6.0)
    again = answered(1, "a", 5.0)
    assert calls_of(calls(again), [frozen, Death("b", 20.0, 20.0)], TOLD.runs, COMMITTED).problems == ()
    late = replace(again, started=6.5)
    assert calls_of(calls(late), [frozen], TOLD.runs, COMMITTED).problems != ()


@pytest.mark.parametrize(
    ("extra", "deaths", "says"),
    [
        (answered(0, "b", 5.0), [], "and nobody dead, by b again"),
        (answered(0, "b", 5.0), [Death("b", 3.0, 3.0)], "and nobody dead, by b again"),
        (answered(0, "b", 5.0), [Death("a", 8.0, 8.0)], "and nobody dead, by b again"),
        (answered(0, "b", 12.0), [Death("a", 3.0, 3.0)], "after its answer was committed"),
        (answered(0, "b", 9.0), [Death("a", 4.5, 4.5)], "and nobody dead, by b again"),  # its answer was long there
        (ProviderCall("of nobody", "a", 1.0, 2.0), [], "'of nobody' was asked, and is in no row"),
    ],
)
def test_calls_that_nothing_excuses_are_found(extra: ProviderCall, deaths: list[Death], says: str) -> None:
    problems = calls_of(calls(extra), deaths, TOLD.runs, COMMITTED).problems
    assert any(says in problem for problem in problems), problems


def test_a_death_excuses_one_call_more_and_not_two() -> None:
    twice = calls(answered(0, "a", 3.5), answered(0, "a", 5.0))
    problems = calls_of(twice, [Death("a", 3.0, 3.0)], TOLD.runs, COMMITTED).problems
    assert any("and nobody dead, by a again" in problem for problem in problems), problems
    assert calls_of(twice, [Death("a", 3.0, 3.0), Death("a", 4.0, 4.0)], TOLD.runs, COMMITTED).problems == ()


def test_a_freeze_excuses_one_call_more_and_not_two() -> None:
    """The other Runner takes the frozen one's call over, or finds it made when that one wakes: not both."""
    both = calls(answered(0, "b", 4.0), answered(0, "a", 5.5))
    problems = calls_of(both, [Death("a", 1.5, 6.0)], TOLD.runs, COMMITTED).problems
    assert any("and nobody dead, by a again" in problem for problem in problems), problems


def test_a_death_has_open_only_what_was_begun_and_not_long_answered() -> None:
    history = calls(answered(0, "b", 5.0))
    assert [calls_of(history, [Death("a", at, at)], TOLD.runs, {}).bound for at in (0.2, 1.5, 3.5, 4.5)] == [0, 1, 1, 0]


def test_repeated_calls_of_no_row_are_found_too() -> None:
    (first, second) = (ProviderCall("of nobody", "a", at, at + 1, at + 1) for at in (1.0, 5.0))
    problems = calls_of(calls(first, second), [], TOLD.runs, COMMITTED).problems
    assert any("and nobody dead, by a again" in problem for problem in problems), problems


def test_calls_that_were_open_at_once_are_counted() -> None:
    history = [answered(0, "a", 1.0), answered(1, "b", 1.5), answered(0, "a", 2.6), ProviderCall("hangs", "a", 2.7)]
    assert most_open(history) == 2
    assert most_open([*history, answered(1, "b", 2.8)]) == 3
    assert most_open([]) == 0


def test_an_answer_that_nobody_gave_is_found() -> None:
    (problem,) = calls_of(calls()[:1], [], TOLD.runs, COMMITTED).problems
    assert problem == "'question 1' is in a row and was never asked"


def test_times_of_commits_come_from_the_watch_or_from_events() -> None:
    assert a_watch(numbered()).committed() == {(0, 0): 4.0, (1, 0): 5.0}
    by_clock = committed_by_clock(numbered())
    assert by_clock[1, 0] - by_clock[0, 0] == pytest.approx(1.0)
    late = a_watch(numbered())
    late.times = [at + 10 * abs(by_clock[0, 0]) for at in late.times]
    assert known_commits(late, numbered()) == pytest.approx(by_clock, abs=0.5)
    assert known_commits(Watched(), numbered()) == pytest.approx(by_clock, abs=0.5)
