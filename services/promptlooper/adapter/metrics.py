"""The Adapter's metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from promptlooper.adapter.counts import AdapterCounts
from promptlooper.rpc.metrics import counters, gauges, histograms

_OF_MODEL = ("provider", "model")


class AdapterMetrics(Collector):
    def __init__(self, counts: AdapterCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts
        outcome = (*_OF_MODEL, "outcome")
        yield counters(
            "provider_attempts", "Requests to providers: outcome ok, or what kind of failure.", outcome, counts.attempts
        )
        yield histograms(
            "provider_attempt_duration_seconds", "How long requests to providers took.", _OF_MODEL, counts.seconds
        )
        yield gauges("provider_in_flight", "Requests to providers under way.", ("provider",), counts.in_flight)
        yield gauges(
            "provider_concurrency_limit", "Requests that may be under way at once.", ("provider",), counts.limits
        )
        yield gauges(
            "provider_models_resting",
            "Models that are avoided since they failed or are limited, while another route may answer.",
            ("provider", "deployment", "key"),
            counts.resting(),
        )
        yield counters(
            "completions",
            "Questions that were answered or given up: reason ok, or the error's.",
            ("provider", "reason"),
            counts.completions,
        )
        yield counters("batches", "Batches that providers took.", ("provider",), counts.batches)
        yield counters("batch_items", "Questions in them.", ("provider",), counts.batch_items)
        yield counters("tokens", "Tokens of answers.", (*_OF_MODEL, "direction"), counts.tokens)
        yield counters(
            "tokens_given_up",
            "Tokens of answers that broke off or whose caller went, as far as they were heard.",
            (*_OF_MODEL, "direction"),
            counts.tokens_given_up,
        )
        cost = {key: nanousd / 1e9 for key, nanousd in counts.cost_nanousd.items()}
        yield counters("cost_usd", "What answers cost, where the price is known.", _OF_MODEL, cost)
        yield counters("cost_unknown", "Answers whose price is not known.", ("provider",), counts.cost_unknown)
