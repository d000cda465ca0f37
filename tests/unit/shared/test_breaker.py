"""The circuit breaker."""

from __future__ import annotations

from promptlooper.breaker import Breaker, BreakerState
from promptlooper.testing.clock import ManualClock


def test_breaker_admits_all_until_the_first_failure() -> None:
    breaker = Breaker(ManualClock(), rest=1.0)
    assert breaker.admits()
    assert not breaker.succeeded()
    assert breaker.failed()
    assert not breaker.admits()


def test_breaker_may_wait_for_several_failures_in_a_row() -> None:
    breaker = Breaker(ManualClock(), rest=1.0, failures=3)
    assert [breaker.failed() for _ in range(2)] == [False, False]
    assert not breaker.succeeded()
    assert [breaker.failed() for _ in range(2)] == [False, False]
    assert breaker.admits()
    assert [breaker.failed() for _ in range(2)] == [True, False]
    assert not breaker.admits()


def test_breaker_lets_one_try_through_after_its_rest() -> None:
    clock = ManualClock()
    breaker = Breaker(clock, rest=1.0)
    breaker.failed()
    clock.advance(1.0)
    assert [breaker.admits() for _ in range(3)] == [True, False, False]
    assert not breaker.failed()
    assert not breaker.admits()
    clock.advance(1.0)
    assert breaker.admits()
    assert breaker.succeeded()
    assert [breaker.admits() for _ in range(3)] == [True, True, True]


def test_breaker_says_its_state() -> None:
    clock = ManualClock()
    breaker = Breaker(clock, rest=1.0)
    assert breaker.state is BreakerState.CLOSED
    breaker.failed()
    assert breaker.state is BreakerState.OPEN
    clock.advance(1.0)
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.admits()
    assert breaker.state is BreakerState.HALF_OPEN
    breaker.failed()
    assert breaker.state is BreakerState.OPEN
    clock.advance(1.0)
    assert breaker.admits()
    breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED


def test_try_that_never_ends_does_not_keep_the_breaker_open() -> None:
    clock = ManualClock()
    breaker = Breaker(clock, rest=1.0)
    breaker.failed()
    clock.advance(1.0)
    assert breaker.admits()
    clock.advance(1.0)
    assert breaker.admits()
