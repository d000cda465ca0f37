"""The ring of newest events that all watchers of an experiment share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from promptlooper.experiment import Experiment, ExperimentState, RunCounts
from promptlooper.run import Event
from promptlooper.runner.events.tail import IN_MEMORY, PAGE, Tail
from promptlooper.runner.store.event_log import LogPage

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EXPERIMENT = Experiment("e", "default", "e", ExperimentState.RUNNING, RunCounts(1), NOW, event_seq=10)
ALL = None


def event(seq: int, kind: str = "run.started") -> Event:
    return Event("e", seq, "default", kind, NOW, 1)


def add(tail: Tail, seqs: Sequence[int], upto: int | None = None, size: int = 500, **bounds: int) -> None:
    reached = seqs[-1] if upto is None else upto
    page = LogPage([event(seq) for seq in seqs], [size] * len(seqs), reached)
    tail.add(replace(EXPERIMENT, event_seq=reached), page, **bounds)


def taken(tail: Tail, after: int) -> list[int] | None:
    page = tail.after(after)
    return None if page is None else [event.event_seq for event in page.events]


def test_what_came_after_the_start_is_there_and_what_was_before_is_not() -> None:
    tail = Tail(EXPERIMENT)
    tail.join(ALL, 10)
    assert taken(tail, 10) == []
    add(tail, range(11, 15))
    assert taken(tail, 10) == [11, 12, 13, 14]
    assert taken(tail, 12) == [13, 14]
    assert taken(tail, 14) == []
    assert taken(tail, 9) is None


def test_a_page_is_bounded_and_says_how_far_it_goes() -> None:
    tail = Tail(EXPERIMENT)
    tail.join(ALL, 10)
    add(tail, range(11, 11 + 2 * PAGE + 5))
    page = tail.after(10)
    assert page is not None
    assert (len(page.events), page.event_seq) == (PAGE, 10 + PAGE)
    last = tail.after(10 + 2 * PAGE)
    assert last is not None
    assert (len(last.events), last.event_seq) == (5, 15 + 2 * PAGE)


def test_of_some_kinds_a_page_accounts_for_the_others_between_them() -> None:
    tail = Tail(EXPERIMENT)
    tail.join(frozenset({"run.started"}), 10)
    add(tail, [13, 17], upto=40)
    page = tail.after(10)
    assert page is not None
    assert ([e.event_seq for e in page.events], page.event_seq) == ([13, 17], 40)
    assert taken(tail, 15) == [17]
    assert taken(tail, 17) == []


def test_what_every_watcher_has_taken_is_forgotten() -> None:
    tail = Tail(EXPERIMENT)
    fast, slow = tail.join(ALL, 10), tail.join(ALL, 10)
    add(tail, range(11, 21))
    fast.event_seq, slow.event_seq = 20, 15
    add(tail, [21])
    assert taken(tail, 15) == [16, 17, 18, 19, 20, 21]
    assert taken(tail, 14) is None


def test_a_watcher_that_stands_still_does_not_make_it_grow() -> None:
    tail = Tail(EXPERIMENT, ring_events=100)
    tail.join(ALL, 10)
    for start in range(11, 1_011, 50):
        add(tail, range(start, start + 50))
    assert taken(tail, 10) is None
    assert taken(tail, 909) is None
    assert taken(tail, 910) == list(range(911, 1_011))
    add(tail, [1_011], size=1_000, at_most_bytes=2 * IN_MEMORY * 1_000)
    assert taken(tail, 1_008) == [1_009, 1_010, 1_011]
    assert taken(tail, 1_007) is None
    add(tail, [1_012], size=10_000, at_most_bytes=1_000)
    assert taken(tail, 1_012) == []
    assert taken(tail, 1_011) is None


def test_who_wants_more_kinds_starts_a_new_ring() -> None:
    tail = Tail(EXPERIMENT)
    one = tail.join(frozenset({"run.failed"}), 10)
    assert tail.kinds == {"run.failed"}
    add(tail, [12], upto=20)
    tail.join(frozenset({"run.failed"}), 10)
    assert taken(tail, 10) == [12]
    two = tail.join(frozenset({"run.completed"}), 10)
    assert tail.kinds == {"run.failed", "run.completed"}
    assert taken(tail, 10) is None
    assert taken(tail, 20) == []
    three = tail.join(ALL, 20)
    assert tail.kinds is None
    tail.join(frozenset({"run.waiting"}), 20)
    assert tail.kinds is None
    assert not tail.leave(three)
    assert tail.kinds == {"run.failed", "run.completed", "run.waiting"}
    assert not tail.leave(two)
    assert tail.kinds == {"run.failed", "run.waiting"}
    assert not tail.leave(one)


def test_the_last_who_leaves_is_told_so() -> None:
    tail = Tail(EXPERIMENT)
    one, two = tail.join(ALL, 10), tail.join(ALL, 10)
    assert not tail.leave(one)
    assert tail.leave(two)


def test_watchers_are_woken_by_new_events_and_by_failure_and_not_by_nothing_new() -> None:
    tail = Tail(EXPERIMENT)
    tail.join(ALL, 10)
    moved = tail.moved
    tail.add(replace(EXPERIMENT, tokens_in=5), LogPage((), (), 10))
    assert not moved.is_set()
    assert tail.experiment.tokens_in == 5
    add(tail, [11])
    assert moved.is_set()
    moved = tail.moved
    assert not moved.is_set()
    tail.fail(ValueError("x"))
    assert moved.is_set()
    with pytest.raises(ValueError):
        raise tail.error or AssertionError


def test_who_is_ahead_of_what_was_read_gets_nothing_and_does_not_go_back() -> None:
    tail = Tail(EXPERIMENT)
    tail.join(ALL, 12)
    page = tail.after(12)
    assert page is not None
    assert (list(page.events), page.event_seq) == ([], 12)
