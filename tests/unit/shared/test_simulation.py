from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from promptlooper.testing.simulation import Process, SimulatedClock, SimulatedLoop, Stuck


async def ticking(told: list[float], every: float = 1.0) -> None:
    while True:
        await asyncio.sleep(every)
        told.append(asyncio.get_running_loop().time())


def test_an_hour_passes_at_once() -> None:
    loop = SimulatedLoop()
    clock = SimulatedClock(loop, skew=60)
    before = time.monotonic()
    loop.run(asyncio.sleep(3600))
    assert time.monotonic() - before < 3600
    assert clock.monotonic() == 3600
    assert clock.now().isoformat() == "2026-01-01T01:01:00+00:00"


def test_a_timeout_comes_in_its_order_among_other_timers() -> None:
    told: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(2, told.append, "two")
        loop.call_later(1, told.append, "one")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.5):
                await asyncio.Event().wait()
        told.append("too late")
        await asyncio.sleep(1)

    SimulatedLoop().run(main())
    assert told == ["one", "too late", "two"]


def test_a_stalled_process_goes_on_with_all_that_came_meanwhile() -> None:
    loop, stalled, other = SimulatedLoop(), list[float](), list[float]()

    async def main() -> None:
        process = Process(loop, "one")
        process.start(ticking(stalled))
        beside = asyncio.create_task(ticking(other))
        await asyncio.sleep(1.5)
        process.stall()
        await asyncio.sleep(3)
        process.go_on()
        await asyncio.sleep(2)
        process.kill()
        beside.cancel()
        await process.bury()

    loop.run(main())
    assert stalled == [1, 4.5, 5.5]
    assert other == [1, 2, 3, 4, 5, 6]


def test_a_killed_process_does_nothing_more_not_even_clean_up() -> None:
    loop, told = SimulatedLoop(), list[str]()

    async def serve() -> None:
        try:
            await asyncio.create_task(asyncio.sleep(10))
        finally:
            told.append("cleaned up")

    async def main() -> None:
        process = Process(loop, "one")
        task = process.start(serve())
        await asyncio.sleep(1)
        process.kill()
        task.cancel()
        await asyncio.sleep(100)
        assert process.killed
        assert not task.done()
        assert told == []
        await process.bury()
        assert task.done()

    loop.run(main())
    assert loop.faults == []


def test_a_wait_for_nothing_is_said_to_be_stuck() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck, match="nothing is left to happen"):
        SimulatedLoop().run(main())


def test_a_loop_in_which_no_time_passes_is_said_to_be_stuck() -> None:
    async def main() -> None:
        def again() -> None:
            asyncio.get_running_loop().call_soon(again)

        again()
        await asyncio.Event().wait()

    with pytest.raises(Stuck, match="no time passed"):
        SimulatedLoop().run(main())


def test_there_are_no_threads_in_a_simulation() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="no threads"):
            await asyncio.to_thread(time.monotonic)

    SimulatedLoop().run(main())


def test_what_nobody_caught_is_kept() -> None:
    loop = SimulatedLoop()

    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    loop.run(main())
    assert [type(fault["exception"]) for fault in loop.faults] == [ZeroDivisionError]
