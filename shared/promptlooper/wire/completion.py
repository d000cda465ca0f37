"""Questions, answers and models on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptlooper.completion import (
    Completion,
    CompletionRequest,
    Message,
    ModelCheck,
    ModelInfo,
    Price,
    Tool,
    ToolCall,
)
from promptlooper.errors import (
    ERRORS_BY_REASON,
    CompletionFailed,
    DomainError,
    InvalidArgument,
    InvalidExperiment,
    Problem,
)
from promptlooper.v1 import adapter_service_pb2 as adapter_pb
from promptlooper.v1 import completion_pb2 as pb
from promptlooper.wire.limit_states import limit_from_pb, limit_to_pb
from promptlooper.wire.scalars import milliseconds, object_of, object_text, seconds, text_of, value_of, value_text

DEFAULT_TIMEOUT = 60.0  # seconds, where a request says 0

_NUMBERS = frozenset({"temperature", "top_p", "frequency_penalty", "presence_penalty"})
_INTEGERS = frozenset({"max_tokens", "seed"})
_EXACT_IN_DOUBLE = 2**53

_FINISH_NUMBERS = {
    "": pb.FINISH_REASON_UNSPECIFIED,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "content_filter": pb.FINISH_REASON_CONTENT_FILTER,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
    "other": pb.FINISH_REASON_OTHER,
}
_FINISH_NAMES: dict[int, str] = {number: name for name, number in _FINISH_NUMBERS.items()}


def finish_reason_number(name: str) -> pb.FinishReason.ValueType:
    return _FINISH_NUMBERS.get(name, pb.FINISH_REASON_OTHER)


def finish_reason_name(number: int) -> str:
    """One of FINISH_REASONS; "" where none was given, `other` for one that this version does not know."""
    return _FINISH_NAMES.get(number, "other")


def message_to_pb(message: Message) -> pb.Message:
    return pb.Message(
        role=message.role,
        content=message.content,
        images=message.images,
        tool_calls=[tool_call_to_pb(call) for call in message.tool_calls],
        tool_call_id=message.tool_call_id,
        name=message.name,
        provider_data=message.provider_data,
    )


def message_from_pb(message: pb.Message) -> Message:
    images, calls = message.images, message.tool_calls
    return Message(
        message.role,
        message.content,
        tuple(images) if images else (),
        tuple(map(tool_call_from_pb, calls)) if calls else (),
        message.tool_call_id,
        message.name,
        message.provider_data,
    )


def tool_call_to_pb(call: ToolCall) -> pb.ToolCall:
    return pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments)


def tool_call_from_pb(message: pb.ToolCall) -> ToolCall:
    return ToolCall(message.id, message.name, message.arguments)


def tool_to_pb(tool: Tool, field: str = "tool") -> pb.Tool:
    return pb.Tool(
        name=tool.name,
        description=tool.description,
        parameters_json=object_text(tool.parameters, f"{field}.parameters_json"),
    )


def tool_from_pb(message: pb.Tool, field: str = "tool") -> Tool:
    return Tool(message.name, message.description, object_of(message.parameters_json, f"{field}.parameters_json"))


def schema_text(schema: Mapping[str, Any] | None, field: str) -> str:
    """The text of a schema, "" for none: `{}` is a schema, which every JSON value matches."""
    return value_text(schema, field)


def schema_of(text: str, field: str) -> dict[str, Any] | None:
    return object_of(text, field) if text else None


def params_to_pb(params: Mapping[str, Any]) -> pb.Sampling:
    """Known parameters whose value fits are typed; all others, also a `stop` that is one text, go to extra_json."""
    typed: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in params.items():
        if value is None:
            continue
        kind = type(value)
        if (
            (name in _NUMBERS and (kind is float or (kind is int and abs(value) <= _EXACT_IN_DOUBLE)))
            or (name in _INTEGERS and kind is int and -(2**63) <= value < 2**63)
            or (name == "stop" and kind in (list, tuple) and value and all(type(text) is str for text in value))
        ):
            typed[name] = value
        else:
            extra[name] = value
    if extra:
        typed["extra_json"] = text_of(extra, "sampling.extra_json")
    return pb.Sampling(**typed)


def params_from_pb(sampling: pb.Sampling, field: str = "sampling") -> dict[str, Any]:
    params: dict[str, Any] = {}
    for descriptor, value in sampling.ListFields():
        if descriptor.name == "extra_json":
            for name, extra in object_of(value, f"{field}.extra_json").items():
                if name in params:
                    message = f"{field}.extra_json: {name!r} is set already; set it once"
                    raise InvalidArgument(message, field=f"{field}.extra_json")
                if extra is not None:
                    params[name] = extra
        else:
            params[descriptor.name] = list(value) if descriptor.name == "stop" else value
    return params


def request_to_pb(request: CompletionRequest) -> pb.CompletionRequest:
    return pb.CompletionRequest(
        model=request.model,
        messages=[message_to_pb(message) for message in request.messages],
        sampling=params_to_pb(request.params),
        timeout_ms=milliseconds(request.timeout),
        once=request.once,
        tools=[tool_to_pb(tool, f"tools[{i}]") for i, tool in enumerate(request.tools)],
        tool_choice=request.tool_choice,
        response_schema_json=schema_text(request.response_schema, "response_schema_json"),
        experiment_id=request.experiment_id,
    )


def request_from_pb(
    message: pb.CompletionRequest, field: str = "request", *, within: float | None = None
) -> CompletionRequest:
    """`within`: seconds that the caller has, where it said."""
    return CompletionRequest(
        message.model,
        tuple(map(message_from_pb, message.messages)),
        params_from_pb(message.sampling, f"{field}.sampling"),
        timeout_of(message.timeout_ms, f"{field}.timeout_ms", within),
        message.once,
        tuple(tool_from_pb(tool, f"{field}.tools[{i}]") for i, tool in enumerate(message.tools)),
        message.tool_choice,
        schema_of(message.response_schema_json, f"{field}.response_schema_json"),
        message.experiment_id,
    )


def timeout_of(timeout_ms: int, field: str, within: float | None) -> float:
    """Seconds: no more than the caller has, where it said."""
    timeout = seconds(timeout_ms, field) or DEFAULT_TIMEOUT
    return timeout if within is None else max(0.001, min(timeout, within))


def completion_to_pb(completion: Completion) -> pb.Completion:
    return pb.Completion(
        output=completion.output,
        model=completion.model,
        finish_reason=finish_reason_number(completion.finish_reason),
        tokens_in=completion.tokens_in,
        tokens_out=completion.tokens_out,
        tokens_reasoning=completion.tokens_reasoning,
        tokens_cached_in=completion.tokens_cached_in,
        latency_ms=completion.latency_ms,
        ttft_ms=completion.ttft_ms,
        cost_nanousd=completion.cost_nanousd,
        attempts=completion.attempts,
        reasoning=completion.reasoning,
        tool_calls=[tool_call_to_pb(call) for call in completion.tool_calls],
        tokens_cache_write_in=completion.tokens_cache_write_in,
        logprobs_json=value_text(completion.logprobs, "logprobs_json"),
        provider_data=completion.provider_data,
        price_version=completion.price_version,
        fallback=completion.fallback,
    )


def completion_from_pb(message: pb.Completion) -> Completion:
    return Completion(
        output=message.output,
        model=message.model,
        finish_reason=finish_reason_name(message.finish_reason),
        tokens_in=message.tokens_in if message.HasField("tokens_in") else None,
        tokens_out=message.tokens_out if message.HasField("tokens_out") else None,
        tokens_reasoning=message.tokens_reasoning if message.HasField("tokens_reasoning") else None,
        tokens_cached_in=message.tokens_cached_in if message.HasField("tokens_cached_in") else None,
        latency_ms=message.latency_ms,
        ttft_ms=message.ttft_ms if message.HasField("ttft_ms") else None,
        cost_nanousd=message.cost_nanousd if message.HasField("cost_nanousd") else None,
        attempts=message.attempts,
        reasoning=message.reasoning if message.HasField("reasoning") else None,
        tool_calls=tuple(tool_call_from_pb(call) for call in message.tool_calls),
        tokens_cache_write_in=message.tokens_cache_write_in if message.HasField("tokens_cache_write_in") else None,
        logprobs=value_of(message.logprobs_json, "logprobs_json"),
        provider_data=message.provider_data,
        price_version=message.price_version,
        fallback=message.fallback,
    )


def error_to_pb(error: DomainError) -> adapter_pb.CompletionError:
    return adapter_pb.CompletionError(
        reason=error.reason,
        message=error.message,
        metadata=error.metadata,
        retry_after_ms=None if error.retry_after is None else round(error.retry_after * 1000),
        attempts=error.attempts if isinstance(error, CompletionFailed) else 0,
    )


def error_from_pb(message: adapter_pb.CompletionError) -> DomainError:
    """The error as it was raised; of a reason that this version does not know, a plain DomainError with that reason."""
    kind = ERRORS_BY_REASON.get(message.reason, DomainError)
    error = InvalidExperiment([Problem("", message.message)]) if kind is InvalidExperiment else kind(message.message)
    error.reason = message.reason or "INTERNAL"
    error.metadata = dict(message.metadata)
    error.retry_after = message.retry_after_ms / 1000 if message.HasField("retry_after_ms") else None
    if isinstance(error, CompletionFailed):
        error.attempts = message.attempts
    return error


def price_to_pb(price: Price | None) -> adapter_pb.Price | None:
    if price is None:
        return None
    return adapter_pb.Price(
        input_nanousd_per_mtok=price.input_nanousd_per_mtok,
        output_nanousd_per_mtok=price.output_nanousd_per_mtok,
        request_nanousd=price.request_nanousd,
    )


def price_from_pb(message: adapter_pb.Price) -> Price:
    return Price(message.input_nanousd_per_mtok, message.output_nanousd_per_mtok, message.request_nanousd)


def check_to_pb(check: ModelCheck) -> adapter_pb.ModelCheck:
    return adapter_pb.ModelCheck(
        model=check.model,
        problem_reason=check.problem_reason or "",
        problem=check.problem or "",
        price=price_to_pb(check.price),
        endpoint=check.endpoint,
        list_price=price_to_pb(check.list_price),
        price_version=check.price_version,
        price_unknown=check.price_unknown,
        batches=check.batches,
        batch_price=price_to_pb(check.batch_price),
    )


def check_from_pb(message: adapter_pb.ModelCheck) -> ModelCheck:
    return ModelCheck(
        message.model,
        message.problem_reason or None,
        message.problem or None,
        price_from_pb(message.price) if message.HasField("price") else None,
        message.endpoint,
        price_from_pb(message.list_price) if message.HasField("list_price") else None,
        message.price_version,
        message.price_unknown,
        message.batches,
        price_from_pb(message.batch_price) if message.HasField("batch_price") else None,
    )


def model_to_pb(model: ModelInfo) -> adapter_pb.ModelInfo:
    return adapter_pb.ModelInfo(
        model=model.model,
        provider=model.provider,
        available=model.available,
        problem=model.problem or "",
        price=price_to_pb(model.price),
        price_version=model.price_version,
        limits=[limit_to_pb(limit) for limit in model.limits],
    )


def model_from_pb(message: adapter_pb.ModelInfo) -> ModelInfo:
    return ModelInfo(
        message.model,
        message.provider,
        message.available,
        message.problem or None,
        price_from_pb(message.price) if message.HasField("price") else None,
        message.price_version,
        tuple(limit_from_pb(limit) for limit in message.limits),
    )
