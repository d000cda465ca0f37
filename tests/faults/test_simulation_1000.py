"""A thousand simulated schedules on the real store. PROMPTLOOPER_SCHEDULES=n does more, PROMPTLOOPER_SEED=n begins
elsewhere."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter

import pytest
from simulation.world import simulated

pytestmark = pytest.mark.timeout(3600)


def test_a_thousand_schedules_keep_every_promise(capsys: pytest.CaptureFixture[str]) -> None:
    first, count = int(os.environ.get("PROMPTLOOPER_SEED", 0)), int(os.environ.get("PROMPTLOOPER_SCHEDULES", 1000))
    faults: Counter[str] = Counter()
    broken: list[str] = []
    simulated_seconds, calls = 0.0, 0
    started, cpu = time.monotonic(), time.process_time()
    for seed in range(first, first + count):
        report = simulated(seed)
        faults += report.faults
        simulated_seconds += report.seconds
        calls += report.calls
        if report.broken:
            broken.append(str(report))
        if seed % 50 == 0:
            gc.collect()
    took, cpu = time.monotonic() - started, time.process_time() - cpu
    with capsys.disabled():
        print(
            f"\n{count} schedules from seed {first}: {took:.1f} s, {cpu:.1f} s of CPU, "
            f"{simulated_seconds:.0f} simulated s, {calls} calls, {len(broken)} broken"
        )
        for kind, times in sorted(faults.items()):
            print(f"  {times:6} x {kind}")
    assert not broken, "\n".join(broken)
