"""What is kept of a call: what it sent and what came of it."""

from __future__ import annotations

from promptlooper.completion import Completion, CompletionRequest
from promptlooper.errors import OutputInvalid
from promptlooper.run import RunError, StageResult
from promptlooper.runner.answers import Answer
from promptlooper.runner.calls import Call
from promptlooper.validity import why_unusable


def failed_stage(request: CompletionRequest, call: Call, error: RunError) -> StageResult:
    """Of a call that got no answer."""
    return StageResult(
        stage_index=call.stage_index,
        name=error.stage,
        messages=request.messages,
        output="",
        model="",
        model_requested=request.model,
        params=request.params,
        tokens_in=None,
        tokens_out=None,
        tokens_reasoning=None,
        tokens_cached_in=None,
        latency_ms=0,
        ttft_ms=None,
        cost_nanousd=None,
        cost_saved_nanousd=None,
        cached=False,
        attempts=error.attempts,
        finish_reason="",
        error=error,
        iteration=call.iteration,
        round=call.round,
    )


def stage_result(call: Call, name: str, request: CompletionRequest, answer: Answer) -> StageResult:
    completion: Completion = answer.completion
    why = why_unusable(request, completion)
    return StageResult(
        stage_index=call.stage_index,
        name=name,
        messages=request.messages,
        output=completion.output,
        model=completion.model,
        model_requested=request.model,
        params=request.params,
        tokens_in=completion.tokens_in,
        tokens_out=completion.tokens_out,
        tokens_reasoning=completion.tokens_reasoning,
        tokens_cached_in=completion.tokens_cached_in,
        latency_ms=completion.latency_ms,
        ttft_ms=completion.ttft_ms,
        cost_nanousd=0 if answer.cached else completion.cost_nanousd,
        cost_saved_nanousd=completion.cost_nanousd if answer.cached else 0,
        cached=answer.cached,
        attempts=0 if answer.cached else completion.attempts,
        finish_reason=completion.finish_reason,
        reasoning=completion.reasoning,
        error=None if why is None else RunError(OutputInvalid.reason, why, call.stage_index, name),
        iteration=call.iteration,
        round=call.round,
        tool_calls=completion.tool_calls,
        tokens_cache_write_in=completion.tokens_cache_write_in,
        logprobs=completion.logprobs,
        provider_data=completion.provider_data,
        price_version=completion.price_version,
        batched=answer.batched,
    )
