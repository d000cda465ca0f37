"""What an Adapter counts, and that nobody makes it count without end."""

from __future__ import annotations

from promptlooper.adapter.counts import NAMED_MODELS, OTHER, AdapterCounts
from promptlooper.completion import Completion
from promptlooper.counting import Histogram


def test_models_that_never_answered_share_one_name() -> None:
    counts = AdapterCounts()
    for n in range(1000):
        counts.attempted("openai", f"no-such-{n}", "permanent", 0.1)
    assert counts.attempts == {("openai", OTHER, "permanent"): 1000}
    counts.attempted("openai", "gpt", "ok", 0.1)
    counts.attempted("openai", "gpt", "rate_limited", 0.1)
    assert counts.attempts["openai", "gpt", "rate_limited"] == 1


def test_models_beyond_a_number_share_one_name_though_they_answer() -> None:
    counts = AdapterCounts()
    for n in range(NAMED_MODELS + 50):
        counts.attempted("vllm", f"fine-tune-{n}", "ok", 0.1)
    assert len(counts.attempts) == NAMED_MODELS + 1
    assert counts.attempts["vllm", OTHER, "ok"] == 50


def test_tokens_and_money_are_summed_and_an_unknown_price_is_said() -> None:
    counts = AdapterCounts()
    counts.completed("openai", "gpt", Completion("a", "gpt", "stop", 10, 5, latency_ms=1, cost_nanousd=700))
    counts.completed("openai", "gpt", Completion("a", "gpt", "stop", None, None, latency_ms=1, cost_nanousd=None))
    assert counts.tokens == {("openai", "gpt", "input"): 10, ("openai", "gpt", "output"): 5}
    assert counts.cost_nanousd == {("openai", "gpt"): 700}
    assert counts.cost_unknown == {"openai": 1}
    assert counts.completions == {("openai", "ok"): 2}


def test_a_histogram_counts_up_to_and_including_each_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 99.0):
        histogram.add(value)
    assert histogram.cumulative() == [(1.0, 2), (2.0, 3), (float("inf"), 4)]
    assert histogram.total == 102.0
