"""What a Runner knows of the queue and of events that wait."""

from __future__ import annotations

from dataclasses import replace

from promptlooper.experiment import ExperimentState
from promptlooper.runner.counts import EventLag, Queue
from promptlooper.runner.store.repository import Active


def active(pending: int, running: int = 0, cap: int = 10, state: str = "RUNNING", name: str = "a") -> Active:
    return Active(name, ExperimentState(state), running, pending, cap, None)


def test_claimable_are_the_runs_that_caps_admit_and_pending_all_that_wait() -> None:
    queue = Queue()
    queue.look([active(100, running=7), active(5, name="b"), active(50, state="PAUSED", name="c")], 2, now=0.0)
    assert (queue.claimable, queue.pending, queue.runners) == (3 + 5, 155, 2)
    assert queue.states == {"RUNNING": 2, "PAUSED": 1}


def test_what_waits_for_a_batch_is_nothing_to_claim_and_nothing_that_lies_there() -> None:
    queue = Queue()
    queue.look([replace(active(100), in_batch=97)], 1, now=0.0)
    assert (queue.claimable, queue.pending) == (3, 100)
    queue.look([replace(active(100), in_batch=100)], 1, now=10.0)
    assert (queue.claimable, queue.pending, queue.age(99.0)) == (0, 100, 0.0)


def test_the_age_grows_while_nothing_is_claimed_and_starts_anew_with_each_claim() -> None:
    queue = Queue()
    queue.look([active(100)], 1, now=10.0)
    queue.look([active(100)], 1, now=15.0)
    assert queue.age(16.0) == 6.0
    queue.look([active(99, running=1)], 1, now=20.0)
    assert queue.age(21.0) == 1.0
    queue.look([active(90, running=10)], 1, now=30.0)  # the cap is reached: nothing can be claimed
    assert queue.age(40.0) == 0.0


def test_the_age_is_that_of_the_experiment_that_waits_longest() -> None:
    queue = Queue()
    queue.look([active(10), active(10, name="b")], 1, now=0.0)
    queue.look([active(9, running=1), active(10, name="b")], 1, now=5.0)
    assert queue.age(7.0) == 7.0
    queue.look([], 1, now=8.0)
    assert queue.age(9.0) == 0.0


def test_event_lag_counts_from_the_first_look_that_found_some_until_none_is_left() -> None:
    lag = EventLag()
    assert lag.seconds(5.0) == 0.0
    lag.behind(3, now=10.0)
    lag.behind(9, now=12.0)
    assert (lag.unpublished, lag.seconds(14.0)) == (9, 4.0)
    lag.behind(0, now=15.0)
    assert lag.seconds(16.0) == 0.0
