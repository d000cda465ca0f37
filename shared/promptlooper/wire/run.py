"""Runs, their stages and scores on the wire."""

from __future__ import annotations

from dataclasses import replace

from promptlooper.run import Run, RunError, RunState, Score, StageResult
from promptlooper.v1 import run_pb2 as pb
from promptlooper.wire.completion import (
    finish_reason_name,
    finish_reason_number,
    message_from_pb,
    message_to_pb,
    tool_call_from_pb,
    tool_call_to_pb,
)
from promptlooper.wire.scalars import (
    EnumOnWire,
    moment,
    object_of,
    object_text,
    text_of,
    timestamp,
    value_of,
    value_text,
)

RUN_STATES = EnumOnWire(RunState, pb.RunState, "RUN_STATE_")


def error_to_pb(error: RunError) -> pb.RunError:
    return pb.RunError(
        reason=error.reason,
        message=error.message,
        stage_index=error.stage_index,
        stage=error.stage,
        attempts=error.attempts,
        retryable=error.retryable,
    )


def error_from_pb(message: pb.RunError) -> RunError:
    return RunError(
        message.reason,
        message.message,
        message.stage_index if message.HasField("stage_index") else None,
        message.stage,
        message.attempts,
        message.retryable,
    )


def stage_to_pb(stage: StageResult) -> pb.StageResult:
    return pb.StageResult(
        stage_index=stage.stage_index,
        name=stage.name,
        messages=[message_to_pb(message) for message in stage.messages],
        output=stage.output,
        model=stage.model,
        model_requested=stage.model_requested,
        params_json=text_of(stage.params, "params_json"),
        tokens_in=stage.tokens_in,
        tokens_out=stage.tokens_out,
        tokens_reasoning=stage.tokens_reasoning,
        tokens_cached_in=stage.tokens_cached_in,
        latency_ms=stage.latency_ms,
        ttft_ms=stage.ttft_ms,
        cost_nanousd=stage.cost_nanousd,
        cost_saved_nanousd=stage.cost_saved_nanousd,
        cached=stage.cached,
        attempts=stage.attempts,
        finish_reason=finish_reason_number(stage.finish_reason),
        reasoning=stage.reasoning,
        error=None if stage.error is None else error_to_pb(stage.error),
        iteration=stage.iteration,
        round=stage.round,
        tool_calls=[tool_call_to_pb(call) for call in stage.tool_calls],
        tokens_cache_write_in=stage.tokens_cache_write_in,
        logprobs_json=value_text(stage.logprobs, "logprobs_json"),
        provider_data=stage.provider_data,
        price_version=stage.price_version,
        batched=stage.batched,
    )


def stage_from_pb(message: pb.StageResult) -> StageResult:
    return StageResult(
        stage_index=message.stage_index,
        name=message.name,
        messages=tuple(message_from_pb(m) for m in message.messages),
        output=message.output,
        model=message.model,
        model_requested=message.model_requested,
        params=object_of(message.params_json, "stage.params_json"),
        tokens_in=message.tokens_in if message.HasField("tokens_in") else None,
        tokens_out=message.tokens_out if message.HasField("tokens_out") else None,
        tokens_reasoning=message.tokens_reasoning if message.HasField("tokens_reasoning") else None,
        tokens_cached_in=message.tokens_cached_in if message.HasField("tokens_cached_in") else None,
        latency_ms=message.latency_ms,
        ttft_ms=message.ttft_ms if message.HasField("ttft_ms") else None,
        cost_nanousd=message.cost_nanousd if message.HasField("cost_nanousd") else None,
        cost_saved_nanousd=message.cost_saved_nanousd if message.HasField("cost_saved_nanousd") else None,
        cached=message.cached,
        attempts=message.attempts,
        finish_reason=finish_reason_name(message.finish_reason),
        reasoning=message.reasoning if message.HasField("reasoning") else None,
        error=error_from_pb(message.error) if message.HasField("error") else None,
        iteration=message.iteration,
        round=message.round,
        tool_calls=tuple(tool_call_from_pb(call) for call in message.tool_calls),
        tokens_cache_write_in=message.tokens_cache_write_in if message.HasField("tokens_cache_write_in") else None,
        logprobs=value_of(message.logprobs_json, "logprobs_json"),
        provider_data=message.provider_data,
        price_version=message.price_version,
        batched=message.batched,
    )


def score_to_pb(score: Score) -> pb.Score:
    return pb.Score(
        name=score.name,
        type=score.type,
        value=score.value,
        passed=score.passed,
        weight=score.weight,
        explanation=score.explanation,
        error=score.error or "",
        metadata_json=object_text(score.metadata, "metadata_json"),
    )


def score_from_pb(message: pb.Score) -> Score:
    return Score(
        name=message.name,
        type=message.type,
        value=message.value if message.HasField("value") else None,
        passed=message.passed if message.HasField("passed") else None,
        weight=message.weight,
        explanation=message.explanation,
        error=message.error or None,
        metadata=object_of(message.metadata_json, "score.metadata_json"),
    )


def basic(run: Run) -> Run:
    """The run in the BASIC view: without texts."""
    return replace(run, input=None, expected=None, output=None, stages=())


def run_to_pb(run: Run) -> pb.Run:
    return pb.Run(
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        project=run.project,
        generation=run.generation,
        run_index=run.run_index,
        state=RUN_STATES.number(run.state),
        input_index=run.input_index,
        input_id=run.input_id,
        variant_id=run.variant_id,
        pipeline=run.pipeline,
        model=run.model,
        params_json=text_of(run.params, "params_json"),
        repeat=run.repeat,
        input_json=value_text(run.input, "input_json"),
        expected_json=value_text(run.expected, "expected_json"),
        output=run.output,
        score=run.score,
        passed=run.passed,
        scores=[score_to_pb(score) for score in run.scores],
        error=None if run.error is None else error_to_pb(run.error),
        tokens_in=run.tokens_in,
        tokens_out=run.tokens_out,
        tokens_reasoning=run.tokens_reasoning,
        tokens_cached_in=run.tokens_cached_in,
        cost_nanousd=run.cost_nanousd,
        cost_saved_nanousd=run.cost_saved_nanousd,
        latency_ms=run.latency_ms,
        duration_ms=run.duration_ms,
        cached=run.cached,
        attempts=run.attempts,
        stages=[stage_to_pb(stage) for stage in run.stages],
        tags=run.tags,
        metadata=run.metadata,
        created_at=timestamp(run.created_at),
        started_at=timestamp(run.started_at),
        completed_at=timestamp(run.completed_at),
    )


def run_from_pb(message: pb.Run) -> Run:
    return Run(
        run_id=message.run_id,
        experiment_id=message.experiment_id,
        project=message.project,
        generation=message.generation,
        run_index=message.run_index,
        state=RUN_STATES.member(message.state, "run.state"),
        input_index=message.input_index,
        input_id=message.input_id,
        variant_id=message.variant_id,
        pipeline=message.pipeline,
        model=message.model,
        params=object_of(message.params_json, "run.params_json"),
        repeat=message.repeat,
        input=value_of(message.input_json, "run.input_json"),
        expected=value_of(message.expected_json, "run.expected_json"),
        output=message.output if message.HasField("output") else None,
        score=message.score if message.HasField("score") else None,
        passed=message.passed if message.HasField("passed") else None,
        scores=tuple(score_from_pb(score) for score in message.scores),
        error=error_from_pb(message.error) if message.HasField("error") else None,
        tokens_in=message.tokens_in,
        tokens_out=message.tokens_out,
        tokens_reasoning=message.tokens_reasoning,
        tokens_cached_in=message.tokens_cached_in,
        cost_nanousd=message.cost_nanousd if message.HasField("cost_nanousd") else None,
        cost_saved_nanousd=message.cost_saved_nanousd,
        latency_ms=message.latency_ms,
        duration_ms=message.duration_ms if message.HasField("duration_ms") else None,
        cached=message.cached,
        attempts=message.attempts,
        stages=tuple(stage_from_pb(stage) for stage in message.stages),
        tags=tuple(message.tags),
        metadata=dict(message.metadata),
        created_at=moment(message.created_at),
        started_at=moment(message.started_at) if message.HasField("started_at") else None,
        completed_at=moment(message.completed_at) if message.HasField("completed_at") else None,
    )
