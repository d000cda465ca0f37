import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptlooper.experiment import ExperimentState
from promptlooper.runner.fairness import UNUSED, Portion, fair_shares
from promptlooper.runner.pace import LONGEST, SHORTEST, Pace
from promptlooper.runner.store.repository import Active


def test_one_experiment_gets_every_slot_it_wants() -> None:
    assert fair_shares(100, {"a": 5_000}) == {"a": 100}
    assert fair_shares(100, {"a": 7}) == {"a": 7}


def test_a_small_experiment_beside_a_large_one_gets_all_it_wants() -> None:
    assert fair_shares(100, {"large": 100_000, "small": 1}) == {"large": 99, "small": 1}


def test_equal_wants_get_equal_shares() -> None:
    assert fair_shares(9, {"a": 50, "b": 50, "c": 50}) == {"a": 3, "b": 3, "c": 3}


def test_with_more_experiments_than_slots_those_that_want_least_come_first() -> None:
    assert fair_shares(2, {"a": 9, "b": 1, "c": 5}) == {"b": 1, "c": 1, "a": 0}


@given(st.integers(0, 200), st.dictionaries(st.text(min_size=1), st.integers(0, 300), max_size=12))
def test_shares_never_exceed_slots_or_wants_and_leave_no_slot_idle(slots: int, wants: dict[str, int]) -> None:
    shares = fair_shares(slots, wants)
    assert shares.keys() == wants.keys()
    assert all(0 <= shares[e] <= wants[e] for e in wants)
    assert sum(shares.values()) == min(slots, sum(wants.values()))


def of(running: int, *, pending: int = 100, cap: int = 12, state: ExperimentState = ExperimentState.RUNNING) -> Active:
    return Active("e", state, running, pending, cap, None)


def test_a_runner_wants_its_equal_part_of_an_experiment() -> None:
    portion = Portion(now=0.0)
    assert portion.wanted(of(0), living=3, in_flight=0, now=0.0) == 4
    assert portion.wanted(of(0), living=1, in_flight=0, now=0.0) == 12


def test_what_the_others_leave_unused_is_wanted_after_a_moment_and_kept() -> None:
    portion = Portion(now=0.0)
    assert portion.wanted(of(4), living=3, in_flight=4, now=0.2) == 4
    assert portion.wanted(of(4), living=3, in_flight=4, now=UNUSED) == 12
    assert portion.wanted(of(12), living=3, in_flight=12, now=0.6) == 12


def test_another_runner_that_comes_makes_everybody_go_back_to_an_equal_part() -> None:
    portion = Portion(now=0.0)
    portion.wanted(of(6), living=2, in_flight=6, now=UNUSED)
    assert portion.wanted(of(12), living=2, in_flight=12, now=0.6) == 12
    assert portion.wanted(of(12), living=3, in_flight=12, now=0.8) == 4


def test_nobody_wants_more_than_could_run() -> None:
    portion = Portion(now=0.0)
    assert portion.wanted(of(10), living=1, in_flight=3, now=0.0) == 5
    assert portion.wanted(of(2, pending=1), living=1, in_flight=2, now=0.0) == 3
    assert portion.wanted(of(2, state=ExperimentState.PAUSED), living=1, in_flight=2, now=0.0) == 2


def test_turns_are_less_frequent_where_answers_take_long() -> None:
    pace = Pace()
    pace.turn_begins(10.0)
    assert pace.pause(10.0) == pytest.approx(SHORTEST)
    for _ in range(100):
        pace.answered(0.4)
    pace.turn_begins(20.0)
    assert pace.pause(20.0) == pytest.approx(0.08, rel=0.01)
    for _ in range(100):
        pace.answered(30.0)
    pace.turn_begins(30.0)
    assert pace.pause(30.0) == pytest.approx(LONGEST)
    assert pace.pause(31.0) < 0
