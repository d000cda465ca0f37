"""How much goes into batches after one was too much."""

from __future__ import annotations

from promptlooper.runner.batch_room import BatchRoom
from promptlooper.runner.store.batches import Sizes
from promptlooper.testing.clock import ManualClock

MOST = Sizes(items=1_000, bytes=9)


def items(room: BatchRoom, under_way: int = 0) -> int | None:
    sizes = room.sizes("e", under_way)
    return None if sizes is None else sizes.items


def test_what_is_too_much_beside_others_waits_longer_each_time_and_is_not_made_smaller() -> None:
    clock = ManualClock()
    room = BatchRoom(MOST, 60.0, clock)
    assert items(room, under_way=3) == 1_000
    for wait in (60.0, 120.0, 240.0):
        room.was_too_much("e", 1_000, alone=False)
        clock.advance(wait - 1)
        assert items(room, under_way=3) is None
        clock.advance(1)
        assert items(room, under_way=3) == 1_000
    room.was_too_much("e", 1_000, alone=False)
    room.went_well("e")
    assert items(room, under_way=3) == 1_000


def test_what_is_too_much_alone_is_halved_and_grows_again_one_batch_at_a_time() -> None:
    clock = ManualClock()
    room = BatchRoom(MOST, 60.0, clock)
    for had, then in ((600, 300), (300, 150), (1, 1)):
        room.was_too_much("e", had, alone=True)
        clock.advance(60)
        assert (items(room), items(room, under_way=1)) == (then, None)
    for then in (2, 4, 8):
        room.went_well("e")
        assert (items(room), items(room, under_way=1)) == (then, None)
    room.forget_all_but(["e"])
    assert items(room) == 8
    room.forget_all_but([])
    assert items(room, under_way=1) == 1_000
