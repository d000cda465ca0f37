"""The table of results fits the terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptlooper.cli.report import cache_line, closing_lines, print_variants, where_lines
from promptlooper.cli.session import Target
from promptlooper.experiment import ExperimentState, GateResult, Limits, RunCounts, ScorerSummary


def variants(make: Any, *labels: str, failed: int = 0) -> list[Any]:
    one = make.summary(make.experiment()).variants[0]
    scores = (ScorerSummary("right", 0.857, 14, 0), ScorerSummary("brief", None, 0, 2))
    return [replace(one, label=label, failed=failed, scores=scores) for label in labels]


LABELS = ("direct · local/smollm2-135m-instruct", "examples · local/smollm2-135m-instruct")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_wide_table_has_every_column(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_variants(variants(make, *LABELS), 200)
    heading, _, first, _ = lines(capsys)
    assert " ".join(heading.split()) == "variant runs failed score pass right brief tokens in out cost p50 p95"
    assert first.startswith(LABELS[0])
    assert " ".join(first.split()[3:]) == "2 0 0.75 50% 0.86 – (2 errors) 24 6 $0.000003 80 ms 1.5 s"


def test_narrow_table_leaves_out_what_all_labels_share(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_variants(variants(make, *LABELS), 90)
    heading, _, first, second, common = lines(capsys)
    assert "failed" not in heading
    assert (first.split()[0], second.split()[0]) == ("direct", "examples")
    assert common == "all of them: local/smollm2-135m-instruct"
    assert max(map(len, (heading, first, second))) <= 90


def test_narrow_table_keeps_failures(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_variants(variants(make, *LABELS, failed=1), 95)
    assert "failed" in lines(capsys)[0]


def test_labels_without_a_common_end_stay_whole(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_variants(variants(make, "a · m1", "a · m2"), 90)
    assert [line.split("  ")[0] for line in lines(capsys)[2:]] == ["a · m1", "a · m2"]


def test_variants_are_paragraphs_where_no_table_fits(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_variants(variants(make, *LABELS), 40)
    found = lines(capsys)
    assert found[0] == LABELS[0]
    assert found[1].startswith("  runs 2 · failed 0 · score 0.75 · pass 50% · right 0.86")


def test_nothing_to_compare_is_an_empty_table(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_variants([], 80)
    assert lines(capsys)[0].startswith("variant")


def test_budget_that_ended_an_experiment_says_why_before_it_is_used_up(make: Any) -> None:
    counts = RunCounts(total=60, completed=12, cancelled=48)
    ended = make.experiment(
        state=ExperimentState.CANCELLED, reason="BUDGET", counts=counts, cost_nanousd=3_100_000, cost_unknown_calls=0
    )
    target = Target(None, Path("home"))
    last = list(where_lines(ended, target, Limits(budget_nanousd=4_000_000)))[-1]
    assert last == (
        "The budget ended it: the next call might have cost more than what was left (spent $0.0031 of $0.004). "
        "Raise limits.budget_usd to run the rest."
    )
    tokens = list(where_lines(ended, target, Limits(budget_tokens=20_000)))[-1]
    assert "more than what was left of 20,000 tokens" in tokens
    assert "Raise limits.budget_tokens" in tokens
    assert "(spent $0.0031)" in list(where_lines(ended, target))[-1]
    assert cache_line(ended) == "Cache: none of 12 runs served from the cache"


def test_gate_of_an_unfinished_experiment_is_open(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    gate = GateResult("max_failed_runs", "", 0, 0, True)
    running = make.summary(make.experiment(state=ExperimentState.RUNNING), (gate,))
    assert "Gate open: max_failed_runs: 0 so far, wanted at most 0" in list(
        closing_lines(running, Target(None, Path()))
    )
