"""The Scorer's metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from promptlooper.rpc.metrics import counters
from promptlooper.scorer.registry import ScorerCore


class ScorerMetrics(Collector):
    def __init__(self, core: ScorerCore) -> None:
        self._core = core

    def collect(self) -> Iterator[Metric]:
        yield counters("scores", "Scores given, by scorer type.", ("type", "outcome"), self._core.scored)
