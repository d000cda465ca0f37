"""Rows to domain values and back."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from promptlooper.completion import Completion, ToolCall, form_of, message_of
from promptlooper.experiment import Experiment, ExperimentState, RunCounts
from promptlooper.jsonvalue import json_text, json_value
from promptlooper.run import Event, RunError, Score, StageResult

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def moment_of(us: int | None) -> datetime | None:
    return None if us is None else EPOCH + timedelta(microseconds=us)


STAGE_RESULT_COLUMNS = (
    "experiment_id",
    "run_index",
    "stage_index",
    "iteration",
    "round",
    "lease_epoch",
    "name",
    "messages_json",
    "output",
    "model",
    "model_requested",
    "params_json",
    "tokens_in",
    "tokens_out",
    "tokens_reasoning",
    "tokens_cached_in",
    "latency_ms",
    "ttft_ms",
    "cost_nanousd",
    "cost_saved_nanousd",
    "cached",
    "attempts",
    "finish_reason",
    "reasoning",
    "error_json",
    "tool_calls_json",
    "tokens_cache_write_in",
    "logprobs_json",
    "provider_data",
    "price_version",
    "batched",
)


def storable(text: str) -> str:
    """Text as both databases can keep it: PostgreSQL has no NUL character, and neither has a lone surrogate."""
    if "\x00" in text:
        text = text.replace("\x00", "\ufffd")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def storable_completion(completion: Completion) -> Completion:
    """The answer without characters that no database or JSON can keep."""
    output, reasoning = storable(completion.output), completion.reasoning
    if output is completion.output and not reasoning:
        return completion
    return replace(completion, output=output, reasoning=None if reasoning is None else storable(reasoning))


def stage_result_row(experiment_id: str, run_index: int, lease_epoch: int, result: StageResult) -> tuple[Any, ...]:
    """In the order of STAGE_RESULT_COLUMNS."""
    return (
        experiment_id,
        run_index,
        result.stage_index,
        result.iteration,
        result.round,
        lease_epoch,
        result.name,
        json_text([form_of(message) for message in result.messages]),
        storable(result.output),
        storable(result.model),
        result.model_requested,
        json_text(result.params),
        result.tokens_in,
        result.tokens_out,
        result.tokens_reasoning,
        result.tokens_cached_in,
        result.latency_ms,
        result.ttft_ms,
        result.cost_nanousd,
        result.cost_saved_nanousd,
        result.cached,
        result.attempts,
        result.finish_reason,
        None if result.reasoning is None else storable(result.reasoning),
        None if result.error is None else json_text(asdict(result.error)),
        storable(json_text(result.tool_calls)) if result.tool_calls else None,
        result.tokens_cache_write_in,
        None if result.logprobs is None else storable(json_text(result.logprobs)),
        storable(result.provider_data),
        result.price_version,
        result.batched,
    )


def stage_result_of(row: Any) -> StageResult:
    return StageResult(
        stage_index=row.stage_index,
        name=row.name,
        messages=tuple(message_of(form) for form in json_value(row.messages_json)),
        output=row.output,
        model=row.model,
        model_requested=row.model_requested,
        params=json_value(row.params_json),
        tokens_in=row.tokens_in,
        tokens_out=row.tokens_out,
        tokens_reasoning=row.tokens_reasoning,
        tokens_cached_in=row.tokens_cached_in,
        latency_ms=row.latency_ms,
        ttft_ms=row.ttft_ms,
        cost_nanousd=row.cost_nanousd,
        cost_saved_nanousd=row.cost_saved_nanousd,
        cached=row.cached,
        attempts=row.attempts,
        finish_reason=row.finish_reason,
        reasoning=row.reasoning,
        error=run_error_of(row.error_json),
        iteration=row.iteration,
        round=row.round,
        tool_calls=tuple(ToolCall(**call) for call in json_value(row.tool_calls_json or "[]")),
        tokens_cache_write_in=row.tokens_cache_write_in,
        logprobs=json_value(row.logprobs_json or "null"),
        provider_data=row.provider_data,
        price_version=row.price_version,
        batched=row.batched,
    )


def score_of(row: Any) -> Score:
    return Score(
        name=row.name,
        type=row.type,
        value=row.value,
        passed=row.passed,
        weight=row.weight,
        explanation=row.explanation,
        error=row.error,
        metadata=json_value(row.metadata_json),
    )


def run_error_of(text: str | None) -> RunError | None:
    return None if text is None else RunError(**json_value(text))


def event_of(row: Any, project: str) -> Event:
    return Event(
        experiment_id=row.experiment_id,
        event_seq=row.event_seq,
        project=project,
        kind=row.kind,
        event_time=EPOCH + timedelta(microseconds=row.time_us),
        generation=row.generation,
        run_index=row.run_index,
        detail=json_value(row.detail_json),
    )


def experiment_of(row: Any, now_us: int) -> Experiment:
    """Of a row that joins experiments and progress."""
    end_us = row.ended_us or now_us
    pending = row.total - row.next_index + row.returned
    return Experiment(
        experiment_id=row.experiment_id,
        project=row.project,
        name=row.name,
        state=ExperimentState(row.state),
        counts=RunCounts(
            total=row.total,
            pending=pending,
            running=row.running,
            completed=row.completed,
            failed=row.failed,
            cancelled=row.cancelled,
            cached=row.cached,
            in_batch=row.in_batch,
        ),
        created_at=EPOCH + timedelta(microseconds=row.created_us),
        description=row.description,
        tags=tuple(json_value(row.tags_json)),
        metadata=json_value(row.metadata_json),
        reason=row.reason,
        generation=row.generation,
        tokens_in=row.tokens_in,
        tokens_out=row.tokens_out,
        cost_nanousd=row.spent_nanousd,
        cost_unknown_calls=row.cost_unknown_calls,
        cost_saved_nanousd=row.cost_saved_nanousd,
        duration_ms=0 if row.started_us is None else max(0, end_us - row.started_us) // 1000,
        started_at=moment_of(row.started_us),
        completed_at=moment_of(row.ended_us),
        event_seq=row.event_seq,
        max_concurrency=row.max_concurrency,
        budget_nanousd=row.budget_nanousd,
        budget_tokens=row.budget_tokens,
        cost_reserved_nanousd=row.reserved_nanousd,
        cost_remaining_nanousd=_remaining_nanousd(row, pending + row.running),
        spec_sha256=row.spec_sha256,
        cost_uncertain_nanousd=row.uncertain_nanousd,
    )


def _remaining_nanousd(row: Any, left: int) -> int | None:
    """What the runs that have not ended will cost if they cost what the others did on average, within the budget."""
    if not left:
        return 0
    ended = row.completed + row.failed
    if row.cost_unknown_calls or not ended:
        return None
    guess: int = row.spent_nanousd * left // ended
    return (
        guess
        if row.budget_nanousd is None
        else min(guess, max(0, row.budget_nanousd - row.spent_nanousd - row.uncertain_nanousd))
    )
