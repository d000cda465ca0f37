"""One result row per run and one summary per experiment, as JSON-ready mappings with fixed keys in a fixed order."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from promptlooper.completion import Message, arguments_of, form_of
from promptlooper.experiment import Experiment, ExperimentSummary, GateResult, RunCounts, VariantSummary
from promptlooper.jsonvalue import parsed_output
from promptlooper.run import Run, RunError, Score, StageResult

SCHEMA_VERSION = 1
NANO = 1_000_000_000
ROW_KEYS = (
    *("schema_version", "project", "experiment_id", "generation", "run_id", "run_index", "state", "input_index"),
    *("input_id", "variant_id", "pipeline", "model", "params", "repeat", "input", "expected", "output", "parsed"),
    *("score", "passed", "scores", "error", "tokens_in", "tokens_out", "tokens_reasoning", "tokens_cached_in"),
    *("cost_usd", "judge_cost_usd", "cost_saved_usd", "latency_ms", "duration_ms", "cached", "attempts", "stages"),
    *("tags", "metadata", "created_at", "started_at", "completed_at"),
)
"""Of every row, in this order; new ones are appended."""


def usd(nanousd: int | None) -> float | None:
    """Dollars as a number; None stays unknown."""
    return None if nanousd is None else nanousd / NANO


def iso(moment: datetime | None) -> str | None:
    """UTC with microseconds and a Z, so that texts sort like times."""
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def run_row(run: Run) -> dict[str, Any]:
    """The row of a run in the FULL view."""
    return {
        "schema_version": SCHEMA_VERSION,
        "project": run.project,
        "experiment_id": run.experiment_id,
        "generation": run.generation,
        "run_id": run.run_id,
        "run_index": run.run_index,
        "state": run.state.value,
        "input_index": run.input_index,
        "input_id": run.input_id,
        "variant_id": run.variant_id,
        "pipeline": run.pipeline,
        "model": run.model,
        "params": run.params,
        "repeat": run.repeat,
        "input": run.input,
        "expected": run.expected,
        "output": run.output,
        "parsed": parsed_output(run.output or ""),
        "score": run.score,
        "passed": run.passed,
        "scores": {score.name: _score(score) for score in run.scores},
        "error": None if run.error is None else _error(run.error),
        "tokens_in": run.tokens_in,
        "tokens_out": run.tokens_out,
        "tokens_reasoning": run.tokens_reasoning,
        "tokens_cached_in": run.tokens_cached_in,
        "cost_usd": usd(run.cost_nanousd),
        "judge_cost_usd": 0.0,  # no scorer asks a model yet
        "cost_saved_usd": usd(run.cost_saved_nanousd),
        "latency_ms": run.latency_ms,
        "duration_ms": run.duration_ms,
        "cached": run.cached,
        "attempts": run.attempts,
        "stages": [_stage(stage) for stage in run.stages],
        "tags": list(run.tags),
        "metadata": dict(run.metadata),
        "created_at": iso(run.created_at),
        "started_at": iso(run.started_at),
        "completed_at": iso(run.completed_at),
    }


def _error(error: RunError) -> dict[str, Any]:
    return {
        "reason": error.reason,
        "message": error.message,
        "stage_index": error.stage_index,
        "stage": error.stage or None,
        "attempts": error.attempts,
        "retryable": error.retryable,
    }


def _stage(stage: StageResult) -> dict[str, Any]:
    asked = [message.content for message in stage.messages if message.role == "user"]
    return {
        "index": stage.stage_index,
        "name": stage.name or None,
        "iteration": stage.iteration,
        "messages": [message_row(message) for message in stage.messages],
        "prompt_sent": asked[-1] if asked else None,
        "output": stage.output if stage.finish_reason else None,
        "parsed": parsed_output(stage.output),
        "tool_calls": [{"id": c.id, "name": c.name, "arguments": arguments_of(c)} for c in stage.tool_calls],
        "reasoning": stage.reasoning,
        "model": stage.model,
        "model_requested": stage.model_requested,
        "params": stage.params,
        "tokens_in": stage.tokens_in,
        "tokens_out": stage.tokens_out,
        "latency_ms": stage.latency_ms,
        "ttft_ms": stage.ttft_ms,
        "cost_usd": usd(stage.cost_nanousd),
        "cached": stage.cached,
        "attempts": stage.attempts,
        "finish_reason": stage.finish_reason,
        "error": None if stage.error is None else _error(stage.error),
        "round": stage.round,
        "tokens_reasoning": stage.tokens_reasoning,
        "tokens_cached_in": stage.tokens_cached_in,
        "tokens_cache_write_in": stage.tokens_cache_write_in,
        "logprobs": stage.logprobs,
        "price_version": stage.price_version or None,
        "batched": stage.batched,
    }


def message_row(message: Message) -> dict[str, Any]:
    """Role and content, and what else the message has."""
    role, content, *others = form_of(message)
    return {"role": role, "content": content, **(others[0] if others else {})}


def _score(score: Score) -> dict[str, Any]:
    return {
        "value": score.value,
        "passed": score.passed,
        "type": score.type,
        "weight": score.weight,
        "explanation": score.explanation or None,
        "error": score.error,
        "metadata": score.metadata,
    }


def summary_document(summary: ExperimentSummary) -> dict[str, Any]:
    """What `--json` of `run` and `show` prints."""
    return {
        **experiment_document(summary.experiment),
        "variants": [_variant(variant) for variant in summary.variants],
        "gates": [_gate(gate, summary.experiment.state.ended) for gate in summary.gates],
    }


def experiment_document(experiment: Experiment) -> dict[str, Any]:
    """The summary's keys that need no look at the runs: what `list` prints of each experiment."""
    return {
        "schema_version": SCHEMA_VERSION,
        "project": experiment.project,
        "experiment_id": experiment.experiment_id,
        "name": experiment.name,
        "generation": experiment.generation,
        "state": experiment.state.value,
        "reason": experiment.reason or None,
        "counts": _counts(experiment.counts),
        "tokens_in": experiment.tokens_in,
        "tokens_out": experiment.tokens_out,
        "cost_usd": usd(experiment.total_cost_nanousd),
        "cost_unknown_calls": experiment.cost_unknown_calls,
        "judge_cost_usd": 0.0,
        "cost_saved_usd": usd(experiment.cost_saved_nanousd),
        "duration_ms": experiment.duration_ms,
        "created_at": iso(experiment.created_at),
        "cost_reserved_usd": usd(experiment.cost_reserved_nanousd),
        "cost_remaining_usd": usd(experiment.cost_remaining_nanousd),
        "cost_uncertain_usd": usd(experiment.cost_uncertain_nanousd),
        "max_concurrency": experiment.max_concurrency,
        "budget_usd": usd(experiment.budget_nanousd),
        "budget_tokens": experiment.budget_tokens,
        "spec_sha256": experiment.spec_sha256 or None,
    }


def _counts(counts: RunCounts) -> dict[str, int]:
    return {
        "total": counts.total,
        "pending": counts.pending,
        "running": counts.running,
        "completed": counts.completed,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "cached": counts.cached,
        "in_batch": counts.in_batch,
    }


def _variant(variant: VariantSummary) -> dict[str, Any]:
    return {
        "variant_id": variant.variant_id,
        "label": variant.label,
        "pipeline": variant.pipeline,
        "model": variant.model,
        "params": variant.params,
        "inputs": variant.inputs,
        "runs": variant.runs,
        "failed": variant.failed,
        "score": variant.score,
        "pass_rate": variant.pass_rate,
        "scores": {score.name: {"mean": score.mean, "n": score.n, "errors": score.errors} for score in variant.scores},
        "latency_ms": {"p50": variant.latency_ms_p50, "p95": variant.latency_ms_p95},
        "tokens_in": variant.tokens_in,
        "tokens_out": variant.tokens_out,
        "cost_usd": usd(variant.total_cost_nanousd),
    }


def _gate(gate: GateResult, ended: bool) -> Mapping[str, Any]:
    counts = gate.name == "max_failed_runs"
    return {
        "name": gate.name,
        "variant_id": gate.variant_id or None,
        "wanted": int(gate.wanted) if counts else gate.wanted,
        "got": int(gate.got) if counts and gate.got is not None else gate.got,
        "passed": gate.passed if ended else None,
    }
