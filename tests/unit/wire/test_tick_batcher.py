"""The tick batcher: what is ready together travels together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from promptlooper.batching import TickBatcher


class Gate:
    """A receiver that records its batches and answers when it is let through."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.batches: list[list[int]] = []
        self.opened = asyncio.Event()
        self.arrived = asyncio.Event()
        if is_open:
            self.opened.set()

    async def send(self, items: list[int]) -> Sequence[int | Exception]:
        self.batches.append(items)
        self.arrived.set()
        await self.opened.wait()
        return [ValueError(f"{item} is odd") if item % 2 else item * 10 for item in items]


async def test_items_of_one_tick_travel_together() -> None:
    gate = Gate()
    batcher = TickBatcher(gate.send)
    assert await asyncio.gather(*(batcher(n) for n in (2, 4, 6))) == [20, 40, 60]
    assert gate.batches == [[2, 4, 6]]


async def test_items_of_several_ticks_travel_together_where_they_may_wait() -> None:
    gate = Gate()
    batcher = TickBatcher(gate.send, gather=0.05)
    first = batcher(2)
    for _ in range(3):
        await asyncio.sleep(0)
    second = batcher(4)
    assert gate.batches == []
    assert await asyncio.gather(first, second) == [20, 40]
    assert gate.batches == [[2, 4]]


async def test_items_that_wait_for_others_are_sent_when_it_is_closed() -> None:
    gate = Gate()
    batcher = TickBatcher(gate.send, gather=3600)
    last = batcher(2)
    await batcher.aclose()
    assert last.result() == 20


async def test_tasks_that_call_in_the_same_tick_share_a_batch() -> None:
    gate = Gate()
    batcher = TickBatcher(gate.send)

    async def ask(n: int) -> int:
        return await batcher(n)

    await asyncio.gather(*(ask(n) for n in range(0, 100, 2)))
    assert len(gate.batches) == 1


async def test_error_of_one_item_is_raised_for_it_alone() -> None:
    batcher = TickBatcher(Gate().send)
    answers = await asyncio.gather(batcher(2), batcher(3), batcher(4), return_exceptions=True)
    assert answers[0] == 20
    assert str(answers[1]) == "3 is odd"
    assert answers[2] == 40


async def test_what_send_raises_is_raised_for_every_item() -> None:
    async def send(items: list[int]) -> Sequence[int | Exception]:
        raise OSError("gone")

    batcher = TickBatcher(send)
    answers = await asyncio.gather(batcher(1), batcher(2), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["gone", "gone"]


async def test_too_few_answers_fail_every_item() -> None:
    async def send(items: list[int]) -> Sequence[int | Exception]:
        return items[:1]

    batcher = TickBatcher(send)
    answers = await asyncio.gather(batcher(1), batcher(2), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["2 items were sent and 1 answers came back"] * 2


async def test_third_batch_gathers_until_one_of_two_is_back() -> None:
    gate = Gate(is_open=False)
    batcher = TickBatcher(gate.send)
    futures = []
    for n in (2, 4):
        gate.arrived.clear()
        futures.append(batcher(n))
        await gate.arrived.wait()
    for n in (6, 8):
        futures.append(batcher(n))
        await asyncio.sleep(0)
    assert gate.batches == [[2], [4]]
    gate.opened.set()
    assert await asyncio.gather(*futures) == [20, 40, 60, 80]
    assert gate.batches == [[2], [4], [6, 8]]


async def test_batch_is_bounded_in_items_and_bytes() -> None:
    gate = Gate()
    batcher = TickBatcher(gate.send, max_items=3, max_bytes=100, size_of=lambda n: n, max_in_flight=9)
    await asyncio.gather(*(batcher(n) for n in (10, 10, 10, 60, 50, 900, 2)))
    assert gate.batches == [[10, 10, 10], [60], [50], [900], [2]]


async def test_cancelled_waiter_is_not_sent_and_harms_nobody() -> None:
    gate = Gate()
    batcher = TickBatcher(gate.send)
    futures = [batcher(n) for n in (2, 4, 6)]
    futures[1].cancel()
    assert await futures[2] == 60
    assert gate.batches == [[2, 6]]


async def test_waiter_cancelled_while_its_batch_is_away_harms_nobody() -> None:
    gate = Gate(is_open=False)
    batcher = TickBatcher(gate.send)
    futures = [batcher(n) for n in (2, 3, 4)]
    await gate.arrived.wait()
    futures[0].cancel()
    futures[1].cancel()
    gate.opened.set()
    assert await futures[2] == 40


async def test_closing_waits_for_what_it_has_and_takes_no_more() -> None:
    gate = Gate()
    batcher = TickBatcher(gate.send, max_items=1, max_in_flight=1)
    futures = [batcher(n) for n in (2, 4, 6)]
    await batcher.aclose()
    assert [future.result() for future in futures] == [20, 40, 60]
    with pytest.raises(RuntimeError, match="closed"):
        batcher(8)
    await batcher.aclose()
