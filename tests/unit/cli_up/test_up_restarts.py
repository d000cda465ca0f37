"""How long a part that ended waits before it is started again."""

from __future__ import annotations

from itertools import accumulate

from promptlooper.cli.stack_child import delay_after


def test_the_delay_doubles_from_a_fifth_of_a_second_to_ten() -> None:
    delays = accumulate(range(8), lambda delay, _: delay_after(delay), initial=delay_after(None))
    assert list(delays) == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]


def test_a_part_that_was_healthy_for_a_while_starts_as_if_for_the_first_time() -> None:
    assert delay_after(10.0, healthy_seconds=10.0) == 0.2


def test_a_part_that_was_healthy_only_for_a_moment_waits_longer_all_the_same() -> None:
    assert delay_after(0.2, healthy_seconds=9.0) == 0.4
