from hypothesis import given
from hypothesis import strategies as st

from promptlooper.runner.fairness import fair_shares


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
