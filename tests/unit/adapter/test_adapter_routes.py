"""Which route is asked next: the error class decides, and what rests is avoided while another may answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from promptlooper.adapter.cost import Dated, Prices
from promptlooper.adapter.providers.mock import MockProvider
from promptlooper.adapter.retrying import Decision, Failure, Kind
from promptlooper.adapter.routes.health import FAILURES, LONGEST_REST, REST, Health
from promptlooper.adapter.routes.route import Route, Upstream
from promptlooper.adapter.routes.way import Way
from promptlooper.adapter.tariff import FREE
from promptlooper.testing.clock import ManualClock

CLOCK = ManualClock()
PROVIDER = MockProvider("mock", (), prices=Prices({"*": [Dated(FREE)]}), clock=CLOCK)
DEAD = Failure(Kind.TRANSIENT, "no")


def route(key: str, deployment: str = "", weight: float = 1.0) -> Route:
    return Route(Upstream(PROVIDER, key, deployment, weight), "ok")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def health(clock: ManualClock) -> Health:
    return Health(clock)


def limited(seconds: float | None = None) -> Failure:
    return Failure(Kind.RATE_LIMITED, "slow down", 429, seconds)


def way(health: Health, *models: Sequence[Route], longer: Sequence[Sequence[Route]] = (), random: float = 0.0) -> Way:
    return Way(models, longer, health, lambda: random)


def test_a_limited_key_is_rotated_at_once_and_the_soonest_is_waited_for_where_all_are_limited(health: Health) -> None:
    a, b = route("a"), route("b")
    walk = way(health, [a, b])
    assert walk.route is a
    assert walk.failed(limited(2.0), time_left=60) == Decision(0.0)
    assert walk.route is b
    assert walk.failed(limited(60.0), time_left=60) == Decision(2.0)
    assert walk.route is a


def test_a_refused_key_is_rotated_and_never_asked_again(health: Health) -> None:
    a, b = route("a"), route("b")
    walk = way(health, [a, route("a", "elsewhere"), b])
    assert walk.failed(Failure(Kind.CREDENTIALS, "no", 402), time_left=60).sleep == 0
    assert walk.route is b
    assert walk.failed(Failure(Kind.CREDENTIALS, "no", 402), time_left=60).sleep is None


def test_the_same_key_is_tried_again_after_what_may_pass_and_another_address_at_once(health: Health) -> None:
    a, b = route("a"), route("b")
    walk = way(health, [a, b], random=0.1)
    assert walk.failed(DEAD, time_left=60).sleep == pytest.approx(0.05)
    assert walk.route is a
    here, there, other = route("a", "eu"), route("a", "us"), route("b", "us")
    walk = way(health, [here, other, there])
    assert walk.failed(DEAD, time_left=60) == Decision(0.0)
    assert walk.route is there


def test_another_model_is_asked_after_three_failures_and_then_nobody(health: Health) -> None:
    a, b = route("a"), route("b")
    walk = way(health, [a], [b])
    sleeps = [walk.failed(DEAD, time_left=60).sleep for _ in range(3)]
    assert (sleeps, walk.route, walk.is_fallback) == ([0.0, 0.0, 0.0], b, True)
    assert [walk.failed(DEAD, time_left=60).sleep for _ in range(3)] == [0.0, 0.0, None]


def test_another_model_is_asked_where_the_wait_is_long_or_does_not_end(health: Health) -> None:
    walk = way(health, [route("a")], [route("b")])
    assert walk.failed(limited(1.0), time_left=60).sleep == 1.0
    assert not walk.is_fallback
    walk.failed(limited(6.0), time_left=60)
    assert walk.is_fallback
    walk = way(health, [route("a")], [route("b")])
    for _ in range(3):
        walk.failed(limited(), time_left=60)
    assert walk.is_fallback


@pytest.mark.parametrize("kind", [Kind.PERMANENT, Kind.CONTENT_FILTERED])
def test_a_question_that_is_at_fault_is_given_up(health: Health, kind: Kind) -> None:
    walk = way(health, [route("a"), route("b")], [route("c")])
    assert walk.failed(Failure(kind, "no", 400), time_left=60) == Decision(None)


def test_a_prompt_that_is_too_long_goes_to_models_for_long_ones_and_no_other(health: Health) -> None:
    long = route("long")
    too_long = Failure(Kind.CONTEXT_TOO_LONG, "no", 400)
    assert way(health, [route("a")], [route("b")]).failed(too_long, time_left=60) == Decision(None)
    walk = way(health, [route("a")], [route("b")], longer=[[long]])
    assert walk.failed(too_long, time_left=60) == Decision(0.0)
    assert (walk.route, walk.is_fallback) == (long, True)
    assert walk.failed(too_long, time_left=60) == Decision(None)


def test_weights_say_how_often_each_is_asked(health: Health) -> None:
    a, b = route("a", weight=3), route("b", weight=1)
    chosen = [way(health, [a, b], random=n / 100).route for n in range(100)]
    assert chosen == [a] * 75 + [b] * 25


def test_failures_in_a_row_open_a_breaker_and_one_probe_at_a_time_closes_it(health: Health, clock: ManualClock) -> None:
    a, b = route("a"), route("b", "elsewhere")
    for _ in range(FAILURES - 1):
        health.failed(a, DEAD)
    assert health.rest(a) == 0
    health.answered(a)
    for _ in range(FAILURES):
        health.failed(a, DEAD)
    assert health.rest(a) == REST
    assert health.resting() == {("mock", "", "a"): 1}
    assert way(health, [a], [b]).route is b
    clock.advance(REST)
    probe = way(health, [a], [b])
    assert probe.route is a
    assert way(health, [a], [b]).route is b  # meanwhile
    probe.leave()  # the caller went
    probe = way(health, [a], [b])
    assert probe.route is a
    assert probe.failed(DEAD, time_left=60) == Decision(0.0)  # not a second time
    assert (probe.route, health.rest(a)) == (b, 2 * REST)
    clock.advance(2 * REST)
    probe = way(health, [a], [b])
    probe.answered()
    probe.leave()
    assert [way(health, [a], [b]).route for _ in range(2)] == [a, a]


def test_an_image_that_can_not_be_fetched_is_no_fault_of_the_route(health: Health) -> None:
    asked = route("a")
    for _ in range(FAILURES):
        health.failed(asked, Failure(Kind.TRANSIENT, "no connection", elsewhere=True))
    assert health.rest(asked) == 0


def test_a_rest_is_extended_and_never_shortened(health: Health, clock: ManualClock) -> None:
    a = route("a")
    health.failed(a, limited(40.0))
    health.failed(a, limited(3.0))
    for _ in range(FAILURES):
        health.failed(a, DEAD)
    clock.advance(10.0)
    health.answered(a)  # asked before
    assert health.rest(a) == 30.0
    health.failed(a, Failure(Kind.CREDENTIALS, "no credit", 402))
    assert health.rest(a) == LONGEST_REST


def test_where_all_rest_the_first_model_is_asked_all_the_same(health: Health) -> None:
    a, b, c = route("a"), route("b"), route("c")
    health.failed(a, limited(9.0))
    health.failed(b, limited(8.0))
    health.failed(c, limited(1.0))
    walk = way(health, [a, b], [c])
    assert (walk.route, walk.is_fallback) == (b, False)


def test_what_callers_ask_for_is_not_kept_for_ever(health: Health, clock: ManualClock) -> None:
    a = route("a")
    for n in range(25_000):
        health.failed(Route(a.upstream, f"no-such-{n}"), DEAD)
    assert len(health._states) <= 10_000
