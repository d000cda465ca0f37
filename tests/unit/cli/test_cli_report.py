"""The table of results fits the terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptlooper.cli.report import cache_line, closing_lines, limit_lines, next_lines, print_variants
from promptlooper.cli.session import Target
from promptlooper.experiment import ExperimentState, GateResult, RunCounts, ScorerSummary

TARGET = Target(None, Path("home"))


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


def test_budget_that_ended_an_experiment_says_how_to_raise_it(make: Any) -> None:
    counts = RunCounts(total=60, completed=12, cancelled=48)
    ended = make.experiment(state=ExperimentState.CANCELLED, reason="BUDGET", counts=counts, cost_nanousd=3_100_000)
    dollars, tokens = replace(ended, budget_nanousd=4_000_000), replace(ended, budget_tokens=20_000)
    assert list(limit_lines(dollars)) == ["Budget: $0.0031 of $0.004 spent"]
    assert list(next_lines(dollars, TARGET)) == [
        "The budget ended it: the next call might have cost more than what was left. Raise it, then run the rest:",
        "  promptlooper update abc123 --budget-usd X",
        "  promptlooper run --resume abc123",
    ]
    assert list(limit_lines(tokens)) == ["Budget: at most 20,000 paid tokens"]
    assert "update abc123 --budget-tokens N" in list(next_lines(tokens, TARGET))[1]
    assert cache_line(ended) == "Cache: none of 12 runs served from the cache"


@pytest.mark.parametrize(
    ("state", "reason", "said"),
    [
        (ExperimentState.CANCELLED, "TIMEOUT", "Its time was over (limits.experiment_timeout). Run the rest"),
        (ExperimentState.CANCELLED, "USER", "Run the rest:"),
        (ExperimentState.FAILED, "no database", "Run the rest:"),
        (ExperimentState.PAUSED, "", "Experiment abc123 is paused: `promptlooper resume abc123 --server h:1` goes on"),
    ],
)
def test_what_ended_early_or_waits_says_how_it_goes_on(
    make: Any, state: ExperimentState, reason: str, said: str
) -> None:
    lines = list(next_lines(make.experiment(state=state, reason=reason), Target("h:1", Path())))
    assert lines[0].startswith(said)
    assert len(lines) == 1 or lines[-1] == "  promptlooper run --resume abc123 --server h:1"


def test_nothing_is_said_of_what_goes_on_or_is_complete(make: Any) -> None:
    for state in (ExperimentState.RUNNING, ExperimentState.COMPLETED, ExperimentState.CANCELLING):
        assert list(next_lines(make.experiment(state=state), TARGET)) == []


def test_what_it_may_still_cost_is_said_while_it_goes_on(make: Any) -> None:
    costs = {"cost_reserved_nanousd": 50_000_000, "cost_remaining_nanousd": 600_000_000, "budget_nanousd": 10**9}
    running = make.experiment(state=ExperimentState.RUNNING, max_concurrency=16, cost_nanousd=400_000_000, **costs)
    assert list(limit_lines(running)) == [
        "Budget: $0.40 of $1.00 spent, up to $0.05 more for calls under way",
        "Still to come: about $0.60",
        "At once: at most 16 runs",
    ]
    assert list(limit_lines(make.experiment(max_concurrency=16))) == []


def test_what_calls_may_have_cost_that_were_given_up_is_said_to_the_end(make: Any) -> None:
    counts = {"budget_nanousd": 10**9, "cost_nanousd": 400_000_000, "cost_uncertain_nanousd": 560_000_000}
    assert list(limit_lines(make.experiment(**counts))) == [
        "Budget: $0.40 of $1.00 spent",
        "Calls that were given up may have cost up to $0.56 more, which counts against the budget",
    ]


def test_commands_that_go_on_take_the_environment_file_again(make: Any) -> None:
    paused = make.experiment(state=ExperimentState.PAUSED)
    said = next(next_lines(paused, Target(None, Path(), env_file="my keys.env")))
    assert "`promptlooper resume abc123 --env-file 'my keys.env'`" in said


def test_gate_of_an_unfinished_experiment_is_open(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    gate = GateResult("max_failed_runs", "", 0, 0, True)
    running = make.summary(make.experiment(state=ExperimentState.RUNNING), (gate,))
    assert "Gate open: max_failed_runs: 0 so far, wanted at most 0" in list(
        closing_lines(running, Target(None, Path()))
    )
