"""Columns of `.csv` files."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from promptlooper.experiment import ScorerSummary
from promptlooper.flat_rows import CsvColumns, CsvLayout, columns_of
from promptlooper.rows import run_row
from promptlooper.run import Score

HEADER = re.findall(
    r"\w+",
    """schema_version, project, experiment_id, generation, run_id, run_index, state, input_index, input_id, variant_id,
    pipeline, model, param_temperature, param_top_p, repeat, input_country, input_size, expected, output, parsed, score,
    passed, score_not_contains, score_not_contains_error, error_reason, error_message, error_stage_index, error_stage,
    error_attempts, error_retryable, tokens_in, tokens_out, tokens_reasoning, tokens_cached_in, cost_usd,
    judge_cost_usd, cost_saved_usd, latency_ms, duration_ms, cached, attempts, tags, metadata, created_at, started_at,
    completed_at""",
)


def columns(inputs: list[Any], params: list[str], scores: list[str]) -> CsvColumns:
    made = CsvColumns(params=dict.fromkeys(params), scores=dict.fromkeys(scores))
    for value in inputs:
        made.saw_input(value)
    return made


def cells_by_name(layout: CsvLayout, run: Any) -> dict[str, str]:
    return dict(zip(layout.header, layout.cells(run_row(run)), strict=True))


def test_header_spreads_params_input_scores_and_error_in_place(make: Any) -> None:
    layout = CsvLayout(columns([{"country": "France"}, {"size": 3}], ["temperature", "top-p"], ["not-contains"]))
    assert layout.header == HEADER


def test_cells_are_text_json_or_empty(make: Any) -> None:
    layout = CsvLayout(columns([{"country": "France", "n": 0}], ["temperature"], ["icontains"]))
    run = make.run(
        input={"country": "Fra,nce", "n": [1, 2]}, expected=None, scores=(Score("icontains", "x", 0.5, None),)
    )
    cells = cells_by_name(layout, run)
    assert cells["input_country"] == "Fra,nce"
    assert cells["input_n"] == "[1,2]"
    assert cells["expected"] == ""
    assert cells["passed"] == "true"
    assert cells["score_icontains"] == "0.5"
    assert cells["score_icontains_error"] == ""
    assert cells["error_reason"] == ""
    assert cells["metadata"] == '{"owner":"search"}'


def test_inputs_that_are_no_mappings_have_the_column_input(make: Any) -> None:
    layout = CsvLayout(columns(["text", {"country": "France"}], [], []))
    assert cells_by_name(layout, make.run(input="text"))["input"] == "text"
    with_mapping = cells_by_name(layout, make.run(input={"country": "France"}))
    assert (with_mapping["input"], with_mapping["input_country"]) == ("", "France")


def test_names_that_fall_together_stay_apart(make: Any) -> None:
    header = CsvLayout(columns([{"a-b": 1, "a_b": 2}], [], [])).header
    assert "input_a_b" in header
    assert "input_a_b_2" in header
    assert len(set(header)) == len(header)


def test_columns_of_a_summary_are_those_of_all_variants(make: Any) -> None:
    summary = make.summary(make.experiment())
    other = replace(summary.variants[0], params={"top_p": 1}, scores=(ScorerSummary("brief", None, 0, 0),))
    made = columns_of(replace(summary, variants=(summary.variants[0], other)))
    assert list(made.params) == ["temperature", "top_p"]
    assert list(made.scores) == ["icontains", "brief"]


def test_failed_run_fills_the_error_columns(make: Any) -> None:
    cells = cells_by_name(CsvLayout(columns([], [], ["icontains"])), make.failed_run(1))
    assert cells["error_reason"] == "PROVIDER_UNAVAILABLE"
    assert cells["error_retryable"] == "true"
    assert cells["score_icontains"] == ""


def test_empty_mapping_and_no_input_differ(make: Any) -> None:
    layout = CsvLayout(columns([{}, None, {"country": "France"}], [], []))
    found = [cells_by_name(layout, make.run(input=value))["input"] for value in ({}, None, {"country": "France"})]
    assert found == ["{}", "", ""]
