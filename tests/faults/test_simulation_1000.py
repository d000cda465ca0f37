"""A thousand simulated schedules on the real store. PROMPTLOOPER_SCHEDULES=n does more, PROMPTLOOPER_SEED=n begins
elsewhere."""

from __future__ import annotations

import os
import time

import pytest
from simulation.many import tally_of_many
from simulation.world import simulated

pytestmark = pytest.mark.timeout(3600)
REPEATED_EVERY = 100


def test_a_thousand_schedules_keep_every_promise(capsys: pytest.CaptureFixture[str]) -> None:
    first, count = int(os.environ.get("PROMPTLOOPER_SEED", 0)), int(os.environ.get("PROMPTLOOPER_SCHEDULES", 1000))
    started = time.monotonic()
    tally = tally_of_many(first, count)
    took = time.monotonic() - started
    with capsys.disabled():
        print(
            f"\n{count} schedules from seed {first}: {took:.1f} s, {tally.cpu_seconds:.1f} s of CPU in "
            f"{os.cpu_count()} processes: {60 * count / took:,.0f} schedules a minute, "
            f"{60 * count / tally.cpu_seconds:,.0f} a minute of CPU; "
            f"{tally.simulated_seconds:.0f} simulated s, {tally.calls} calls, {len(tally.broken)} broken"
        )
        for kind, times in sorted(tally.faults.items()):
            print(f"  {times:6} x {kind}")
    assert not tally.broken, "\n".join(tally.broken)
    assert tally.schedules == count
    some = range(first, first + count, REPEATED_EVERY)
    assert {seed: simulated(seed).digest for seed in some} == {seed: tally.digests[seed] for seed in some}
