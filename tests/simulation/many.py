"""Many simulations, spread over processes: seeds have nothing to do with each other."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from simulation.world import simulated

AT_ONCE = 25


@dataclass(slots=True)
class Tally:
    """What came of some simulations."""

    schedules: int = 0
    broken: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    digests: dict[int, str] = field(default_factory=dict)  # by seed
    calls: int = 0
    simulated_seconds: float = 0.0
    cpu_seconds: float = 0.0

    def add(self, other: Tally) -> None:
        self.schedules += other.schedules
        self.broken += other.broken
        self.faults += other.faults
        self.digests |= other.digests
        self.calls += other.calls
        self.simulated_seconds += other.simulated_seconds
        self.cpu_seconds += other.cpu_seconds


def tally_of(seeds: Iterable[int]) -> Tally:
    """In this process."""
    tally, cpu = Tally(), time.process_time()
    for seed in seeds:
        report = simulated(seed)
        tally.schedules += 1
        tally.faults += report.faults
        tally.digests[seed] = report.digest
        tally.calls += report.calls
        tally.simulated_seconds += report.seconds
        if report.broken:
            tally.broken.append(str(report))
    gc.collect()
    tally.cpu_seconds = time.process_time() - cpu
    return tally


def tally_of_many(first: int, count: int) -> Tally:
    """In as many processes as there are processors, in the order of the seeds."""
    parts = [range(start, min(start + AT_ONCE, first + count)) for start in range(first, first + count, AT_ONCE)]
    tally = Tally()
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as processes:
        for part in processes.map(tally_of, parts):
            tally.add(part)
    return tally
