"""The Adapter's metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from promptlooper.adapter.gateway import Gateway
from promptlooper.rpc.metrics import counters, gauge, gauges, histograms

_OF_MODEL = ("provider", "model")


class AdapterMetrics(Collector):
    """`is_shared` says whether limits are shared with other Adapters now; None where they are not to be."""

    def __init__(self, gateway: Gateway, is_shared: Callable[[], bool] | None = None) -> None:
        self._counts, self._limiter, self._is_shared = gateway.counts, gateway.limiter, is_shared

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
            "provider_models_resting",
            "Models that are avoided since they failed or are limited, while another route may answer.",
            ("provider", "deployment", "key"),
            counts.resting(),
        )
        yield from self._limits()
        yield counters(
            "completions",
            "Questions that were answered or given up: reason ok, or the error's.",
            ("provider", "reason"),
            counts.completions,
        )
        yield counters(
            "embeddings",
            "Calls for embeddings that were answered or given up: reason ok, or the error's.",
            ("provider", "reason"),
            counts.embeddings,
        )
        yield counters("batches", "Batches that providers took.", ("provider",), counts.batches)
        yield counters("batch_items", "Questions in them.", ("provider",), counts.batch_items)
        yield counters("tokens", "Tokens of answers and embeddings.", (*_OF_MODEL, "direction"), counts.tokens)
        yield counters(
            "tokens_given_up",
            "Tokens of answers that broke off or whose caller went, as far as they were heard.",
            (*_OF_MODEL, "direction"),
            counts.tokens_given_up,
        )
        cost = {key: nanousd / 1e9 for key, nanousd in counts.cost_nanousd.items()}
        yield counters("cost_usd", "What answers and embeddings cost, where the price is known.", _OF_MODEL, cost)
        yield counters(
            "cost_unknown",
            "Answers and requests for embeddings whose price is not known.",
            ("provider",),
            counts.cost_unknown,
        )

    def _limits(self) -> Iterator[Metric]:
        most: Counter[tuple[str, str, str]] = Counter()
        waiting: Counter[tuple[str, str, str]] = Counter()
        for lane, state in self._limiter.states().items():
            labels = lane.provider, self._counts.model(lane.provider, lane.model), lane.key
            most[labels] = max(most[labels], state.max_concurrency)
            waiting[labels] += state.waiting
        of_key = (*_OF_MODEL, "key")
        yield gauges(
            "provider_concurrency_limit", "Requests at once that all Adapters together may make.", of_key, most
        )
        yield gauges("provider_waiting", "Questions that wait here for a limit.", of_key, waiting)
        held = self._limiter.held
        yield counters(
            "provider_held", "Questions told to come later, by what they wait for.", ("provider", "waits_for"), held
        )
        if self._is_shared is not None:
            shared = float(self._is_shared())
            yield gauge("limits_shared", "0 while Redis does not answer: each Adapter keeps to its part.", shared)
