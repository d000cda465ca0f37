"""The table of results fits the terminal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from promptlooper.cli.report import print_variants
from promptlooper.experiment import ScorerSummary


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
