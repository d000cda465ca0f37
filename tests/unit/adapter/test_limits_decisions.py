"""The decisions behind limits, one by one: no clock, no loop."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from promptlooper.adapter.limits.control import COOL_DOWN, Control
from promptlooper.adapter.limits.estimate import Estimates
from promptlooper.adapter.limits.fair_queue import FairQueue
from promptlooper.adapter.limits.ledger import Ledger, Report, Rules, alone, exchanged
from promptlooper.adapter.limits.ledger_text import Unreadable, ledger_of, text_of
from promptlooper.adapter.limits.quota import Allowance, Quota, quotas_of
from promptlooper.adapter.limits.share import Block, Share, Why
from promptlooper.completion import CompletionRequest, Message, Tool

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


def clean_round(control: Control, now: float, ceiling: int | None = None, *, full: bool = True) -> None:
    control.answered(now, int(control.limit), control.pauses, full=full, ceiling=ceiling)


def test_limit_doubles_until_the_first_refusal_and_then_grows_slowly() -> None:
    control = Control()
    clean_round(control, 1.0)
    clean_round(control, 2.0)
    assert control.limit == 80
    control.refusal(3.0, control.pauses, None)
    assert control.limit == 64
    clean_round(control, 4.0)  # within the cool-down
    assert control.limit == 64
    clean_round(control, 3.0 + COOL_DOWN)
    assert control.limit == pytest.approx(67.2)


def test_limit_that_was_not_used_up_does_not_grow() -> None:
    control = Control()
    clean_round(control, 1.0, full=False)
    assert control.limit == 20


def test_configured_limit_is_start_and_ceiling() -> None:
    control = Control()
    control.told(8)
    clean_round(control, 1.0, 8)
    assert control.limit == 8
    control.refusal(2.0, control.pauses, None)
    assert control.limit == pytest.approx(6.4)
    for n in range(20):
        clean_round(control, 20.0 + 6 * n, 8)
    assert control.limit == 8


def test_many_refusals_of_one_episode_shrink_once_and_only_extend_the_pause() -> None:
    control = Control()
    for _ in range(10):
        control.refusal(1.0, 0, 4.0)
    assert (control.limit, control.paused_until) == (16, 5.0)
    control.refusal(2.0, 0, 1.0)  # began before the pause: never shortens it
    assert (control.limit, control.paused_until) == (16, 5.0)
    control.refusal(6.0, control.pauses, 30.0)
    assert (control.limit, control.paused_until, control.cool_until) == (16, 36.0, 36.0)


def test_limiting_that_goes_on_shrinks_again_after_each_cool_down() -> None:
    control = Control(limit=100, doubling=False)
    now = 1.0
    while now < 1.0 + 3 * COOL_DOWN:
        control.refusal(now, control.pauses, None)
        now += 1.0
    assert control.limit == pytest.approx(100 * 0.8**3)


def test_trouble_starts_the_round_again_and_shrinks_nothing() -> None:
    control = Control()
    control.answered(1.0, 15, 0, full=True, ceiling=None)
    control.trouble()
    control.answered(2.0, 15, 0, full=True, ceiling=None)
    assert control.limit == 20


def test_pauses_without_retry_after_double_until_something_is_taken() -> None:
    control, lasted = Control(), []
    for now in (10.0, 20.0, 30.0, 40.0):
        control.refusal(now, control.pauses, None)
        lasted.append(control.paused_until - now)
    assert lasted == [0.25, 0.5, 1.0, 2.0]
    control.taken(control.pauses)
    control.refusal(50.0, control.pauses, None)
    assert control.paused_until == 50.25


@dataclass
class Asker:
    experiment: str
    name: str
    left: bool = False


def test_queue_serves_the_urgent_first_and_experiments_in_turn() -> None:
    queue: FairQueue[Asker] = FairQueue()
    askers = [Asker("a", f"a{n}") for n in range(4)] + [Asker("b", "b0"), Asker("b", "b1"), Asker("", "now")]
    for asker in askers:
        queue.add(asker)
    assert queue.ahead_of("b") == 1 + 2 + 3
    askers[1].left = True  # a1
    queue.leave()
    order = []
    while (head := queue.head()) is not None:
        order.append(head.name)
        queue.take()
    assert order == ["now", "a0", "b0", "a2", "b1", "a3"]
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("headers", "requests", "tokens"),
    [
        (
            {
                "x-ratelimit-limit-requests": "60",
                "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-limit-tokens": "150000",
                "x-ratelimit-remaining-tokens": "149984",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            Quota(59, 60, 1.0),
            Quota(149984, 150000, 360.0),
        ),
        (
            {
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2026-11-29T12:00:30Z",
                "anthropic-ratelimit-input-tokens-limit": "1000",
                "anthropic-ratelimit-input-tokens-remaining": "900",
                "anthropic-ratelimit-output-tokens-limit": "1000",
                "anthropic-ratelimit-output-tokens-remaining": "10",
            },
            Quota(0, 50, 30.0),
            Quota(10, 1000, 60.0),
        ),
        (
            {"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "20ms"},
            Quota(3, None, 0.02),
            None,
        ),
        (
            {
                "x-ratelimit-remaining-requests": "3",
                "x-ratelimit-reset-requests": str(int(NOW.timestamp() * 1000) + 5000),
            },
            Quota(3, None, 5.0),
            None,
        ),
        (
            {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": f"{'9' * 400}s"},
            Quota(0, None, 86_400.0),
            None,
        ),
        ({"x-ratelimit-remaining-requests": "many", "x-ratelimit-remaining-tokens": "-1"}, None, None),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "soon"}, Quota(1, None, 60.0), None),
    ],
)
def test_quota_headers_are_understood(headers: dict[str, str], requests: Quota | None, tokens: Quota | None) -> None:
    found = quotas_of(headers, NOW)
    assert (found[0], found[1]) == (requests, tokens)


def test_quota_that_is_used_up_is_waited_for_until_it_comes_back() -> None:
    allowance = Allowance()
    allowance.said(Quota(2, None, 10.0), at=100.0, spent=5)
    assert allowance.wait(1, spent=6, now=101.0, replicas=1) == 0
    assert allowance.wait(1, spent=7, now=101.0, replicas=1) == 9.0
    assert allowance.wait(1, spent=7, now=110.0, replicas=1) == 0
    allowance.said(Quota(0, 600, 60.0), at=200.0, spent=20)  # ten come back in a second
    assert allowance.wait(1, spent=20, now=200.0, replicas=1) == pytest.approx(0.1)
    assert allowance.wait(1, spent=20, now=200.0, replicas=2) == pytest.approx(0.2)
    allowance.said(Quota(50, 600, 60.0), at=199.0, spent=19)  # an answer that began before
    assert allowance.wait(1, spent=20, now=200.0, replicas=1) > 0


def test_members_never_hold_more_than_the_limit_whatever_they_want() -> None:
    rng = random.Random(7)
    for _ in range(200):
        limit = rng.randint(1, 50)
        ledger, rules, flying = Ledger(), Rules(max_concurrency=limit), [0, 0, 0, 0]
        for now in range(60):
            who = rng.randrange(4)
            report = Report(in_flight=flying[who], wants=rng.randint(0, 60))
            grant = exchanged(ledger, f"m{who}", report, rules, now / 10)
            flying[who] = min(grant.holds, rng.randint(0, 60))
            assert sum(member.holds for member in ledger.members.values()) <= limit


def test_after_a_pause_one_replica_tries_for_all_and_another_where_it_does_not() -> None:
    ledger, rules = Ledger(), Rules(max_concurrency=10)
    exchanged(ledger, "a", Report(in_flight=1, refusals=[(0, 4.0)]), rules, 100.0)
    assert not exchanged(ledger, "a", Report(), rules, 100.1).probes  # nobody asks it
    trying = Report(wants=1, would_try=True)
    assert exchanged(ledger, "b", trying, rules, 100.2).probes
    assert not exchanged(ledger, "a", trying, rules, 104.1).probes
    assert exchanged(ledger, "a", trying, rules, 106.1).probes  # b had two seconds
    assert not exchanged(ledger, "b", trying, rules, 106.2).probes
    exchanged(ledger, "a", Report(begun_after=1, taken=True), rules, 106.3)
    assert not exchanged(ledger, "b", Report(wants=1), rules, 106.4).probes
    assert ledger.control.proved


def test_places_that_a_pause_left_empty_are_not_filled_all_at_once() -> None:
    share, rules = Share(Rules()), Rules(max_concurrency=10)
    ledger = Ledger()

    def exchange(now: float, *, would_try: bool = False) -> None:
        report = share.report(20, [0.0, 0.0], [0.0, 0.0], now, full=False)
        report.would_try = would_try
        share.take(exchanged(ledger, "a", report, rules, now), replace(ledger.control), now)

    exchange(100.0)
    begun = [share.begin(1, 100.0) for _ in range(10)]
    assert share.block(1, 100.0) == Block(Why.CONCURRENCY, None)
    for one in begun[1:]:
        share.end()
        share.answered(one, None, 102.6)
    share.end()
    share.refused(begun[0], 1.0, 102.6)
    exchange(102.6, would_try=True)
    assert share.block(1, 103.0) == Block(Why.PAUSE, pytest.approx(0.6))
    share.begin(1, 103.6)
    assert share.block(1, 104.0) == Block(Why.PAUSE, pytest.approx(0.6))  # was it taken?
    assert share.block(1, 104.6) is None
    share.begin(1, 104.6)
    assert share.block(1, 104.6) == Block(Why.PAUSE, pytest.approx(0.25))  # eight in 2.6 s, and 1.3 times as fast


def test_tokens_are_granted_for_the_next_one_as_a_whole_or_not_at_all() -> None:
    ledger, rules = Ledger(), Rules(tokens_per_minute=1000)
    first = exchanged(ledger, "a", Report(wants=1, needs=[1, 700], head=[1, 700]), rules, 100.0)
    assert first.stock[1] == 700
    second = exchanged(ledger, "b", Report(wants=1, needs=[1, 700], head=[1, 700]), rules, 100.1)
    assert second.stock == (0.0, 0.0)
    assert second.wait
    used = Report(used={100: [1.0, 200.0]})  # it took less than was reserved
    exchanged(ledger, "a", used, rules, 150.0)
    third = exchanged(ledger, "b", Report(wants=1, needs=[1, 700], head=[1, 700]), rules, 150.0)
    assert third.stock[1] == 700


def test_question_larger_than_a_minute_goes_when_nothing_else_does() -> None:
    ledger, rules = Ledger(), Rules(tokens_per_minute=1000)
    assert exchanged(ledger, "a", Report(wants=1, needs=[1, 5000], head=[1, 5000]), rules, 100.0).stock[1] == 1000


def test_alone_each_has_an_equal_part_of_what_was_free() -> None:
    ledger, rules = Ledger(), Rules(requests_per_minute=600, max_concurrency=9)
    for name, used in (("a", 400.0), ("b", 50.0), ("c", 0.0)):
        exchanged(ledger, name, Report(used={1000: [used, 0.0]} if used else {}), rules, 1000.5)
    taken = 0.0
    for name in "abc":
        own = alone(ledger, name, 3, 1001.0)
        mine, granted = own.members[name].used, 0.0
        for step in range(40):
            now = 1001.0 + step
            report = Report(wants=5, needs=[100, 0], head=[1, 0], used={**mine, 1001: [granted, 0.0]})
            grant = exchanged(own, name, report, rules, now)
            granted += grant.stock[0]
            assert grant.holds == 3
        taken += granted
    assert taken == pytest.approx(150)


def test_ledger_survives_as_text_and_nothing_else_is_taken_for_one() -> None:
    ledger, report = Ledger(), Report(in_flight=2, wants=3, used={1000: [2.0, 30.0]})
    exchanged(ledger, "a", report, Rules(requests_per_minute=60), 1000.0)
    assert ledger_of(text_of(ledger)) == ledger
    for text in (b"", b"{}", b"[1]", b'[2,[],[0,0],{},"",0]', b'[1,[],[0,0],{"a":[1]},"",0]', b"\xff"):
        with pytest.raises(Unreadable):
            ledger_of(text)
    form, (_, *others), *rest = json.loads(text_of(ledger))
    for control in ([], ["x", *others], [None, *others], [1e308, *others], [-1, *others], [20, *others, 1]):
        with pytest.raises(Unreadable):
            ledger_of(json.dumps([form, control, *rest]).encode())


def test_tools_and_schemas_are_part_of_what_a_question_will_take() -> None:
    plain = CompletionRequest("p/m", (Message("user", "x" * 40),), {"max_tokens": 10})
    tools = replace(plain, tools=(Tool("t", "y" * 38, {}),))
    schema = replace(tools, response_schema={"title": "z" * 28})
    estimates = Estimates()
    assert [estimates.of(each) for each in (plain, tools, schema)] == [24.0, 34.0, 44.0]
