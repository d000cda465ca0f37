"""Rows and summaries have the keys of interface §3, in its order."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from promptlooper.experiment import ExperimentState, GateResult
from promptlooper.rows import NANO, ROW_KEYS, run_row, summary_document
from promptlooper.run import Score


def keys(text: str) -> list[str]:
    return re.findall(r"\w+", text)


ROW = keys("""schema_version, project, experiment_id, generation, run_id, run_index, state, input_index, input_id,
    variant_id, pipeline, model, params, repeat, input, expected, output, parsed, score, passed, scores, error,
    tokens_in, tokens_out, tokens_reasoning, tokens_cached_in, cost_usd, judge_cost_usd, cost_saved_usd, latency_ms,
    duration_ms, cached, attempts, stages, tags, metadata, created_at, started_at, completed_at""")
STAGE = keys("""index, name, iteration, messages, prompt_sent, output, parsed, tool_calls, reasoning, model,
    model_requested, params, tokens_in, tokens_out, latency_ms, ttft_ms, cost_usd, cached, attempts, finish_reason,
    error, round, tokens_reasoning, tokens_cached_in, tokens_cache_write_in, logprobs, price_version, batched""")
SCORE = keys("value, passed, type, weight, explanation, error, metadata")
ERROR = keys("reason, message, stage_index, stage, attempts, retryable")
SUMMARY = keys("""schema_version, project, experiment_id, name, generation, state, reason, counts, tokens_in,
    tokens_out, cost_usd, cost_unknown_calls, judge_cost_usd, cost_saved_usd, duration_ms, created_at,
    cost_reserved_usd, cost_remaining_usd, cost_uncertain_usd, max_concurrency, budget_usd, budget_tokens, spec_sha256,
    variants, gates""")
COUNTS = keys("total, pending, running, completed, failed, cancelled, cached, in_batch")
VARIANT = keys("""variant_id, label, pipeline, model, params, inputs, runs, failed, score, pass_rate, scores,
    latency_ms, tokens_in, tokens_out, cost_usd""")
GATE = keys("name, variant_id, wanted, got, passed")


def test_row_of_a_completed_run_has_every_key_in_order(make: Any) -> None:
    row = run_row(make.run())
    assert list(row) == ROW
    assert list(ROW_KEYS) == ROW
    assert list(row["stages"][0]) == STAGE
    assert list(row["scores"]["icontains"]) == SCORE
    assert row["error"] is None


def test_row_of_a_failed_run_has_every_key_in_order_and_null_where_unknown(make: Any) -> None:
    row = run_row(make.failed_run(3))
    assert list(row) == ROW
    assert list(row["error"]) == ERROR
    assert row["error"]["stage"] is None
    assert row["output"] is None
    assert row["cost_usd"] is None
    assert row["stages"] == []


def test_outputs_that_are_json_are_parsed_as_templates_see_them(make: Any) -> None:
    run = make.run()
    found = run_row(replace(run, output='{"a": [1]}', stages=(replace(run.stages[0], output='{"a": [1]}'),)))
    assert (found["parsed"], found["stages"][0]["parsed"]) == ({"a": [1]}, {"a": [1]})
    assert found["stages"][0]["tool_calls"] == []
    plain = run_row(run)
    assert (plain["parsed"], plain["stages"][0]["parsed"]) == (None, None)


def test_summary_has_every_key_in_order(make: Any) -> None:
    gates = [GateResult("max_failed_runs", "", 0, 0, True)]
    document = summary_document(make.summary(make.experiment(), gates))
    assert list(document) == SUMMARY
    assert list(document["counts"]) == COUNTS
    assert list(document["variants"][0]) == VARIANT
    assert document["variants"][0]["scores"] == {"icontains": {"mean": 0.75, "n": 2, "errors": 0}}
    assert document["variants"][0]["latency_ms"] == {"p50": 80, "p95": 1500}
    assert list(document["gates"][0]) == GATE
    assert document["gates"][0]["variant_id"] is None


def test_money_is_a_number_of_dollars_and_null_where_any_price_is_unknown(make: Any) -> None:
    assert run_row(make.run(cost_nanousd=1_234_567_891))["cost_usd"] == 1.234567891
    assert run_row(make.run(cost_nanousd=0))["cost_usd"] == 0
    document = summary_document(make.summary(make.experiment(cost_unknown_calls=1)))
    assert document["cost_usd"] is None
    assert document["cost_unknown_calls"] == 1
    assert document["variants"][0]["cost_usd"] is None


def test_what_it_may_still_cost_is_in_dollars_and_null_where_unknown(make: Any) -> None:
    limited = make.experiment(
        cost_reserved_nanousd=5,
        cost_remaining_nanousd=2_000_000_000,
        cost_uncertain_nanousd=560_000_000,
        max_concurrency=4,
        budget_nanousd=NANO,
    )
    document = summary_document(make.summary(limited))
    assert (document["cost_reserved_usd"], document["cost_remaining_usd"]) == (5e-9, 2.0)
    assert document["cost_uncertain_usd"] == 0.56
    assert (document["max_concurrency"], document["budget_usd"], document["budget_tokens"]) == (4, 1.0, None)
    unlimited = summary_document(make.summary(make.experiment()))
    assert [unlimited[key] for key in ("cost_remaining_usd", "budget_usd", "spec_sha256")] == [None] * 3


def test_times_are_utc_with_a_z(make: Any) -> None:
    assert run_row(make.run())["created_at"] == "2026-01-02T03:04:05.000000Z"
    assert run_row(make.run(completed_at=None))["completed_at"] is None


def test_prompt_sent_is_the_last_user_message(make: Any) -> None:
    assert run_row(make.run())["stages"][0]["prompt_sent"] == "Capital of France?"


def test_score_in_error_keeps_its_error_and_has_no_value(make: Any) -> None:
    row = run_row(make.run(scores=(Score("s", "regex", None, None, error="bad"),)))
    assert row["scores"]["s"]["value"] is None
    assert row["scores"]["s"]["error"] == "bad"


def test_gates_of_an_unfinished_experiment_have_no_verdict_and_counts_are_integers(make: Any) -> None:
    gates = (
        GateResult("max_failed_runs", "", 1.0, 0.0, True),
        GateResult("min_scores.icontains", "0123456789ab", 1.0, 0.5, False),
    )
    running = summary_document(make.summary(make.experiment(state=ExperimentState.RUNNING), gates))["gates"]
    ended = summary_document(make.summary(make.experiment(), gates))["gates"]
    assert [gate["passed"] for gate in running] == [None, None]
    assert [gate["passed"] for gate in ended] == [True, False]
    assert [repr(gate[key]) for gate in ended for key in ("wanted", "got")] == ["1", "0", "1.0", "0.5"]
