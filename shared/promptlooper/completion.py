"""Questions to models and their answers: what the Runner asks of the Adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from promptlooper.jsonvalue import Json, JsonObject, json_value

TOOL_CHOICES = ("auto", "none", "required")
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str  # the provider's name of this call; the answer refers to it
    name: str
    arguments: str  # JSON text as the model wrote it, which may be none


def arguments_of(call: ToolCall) -> dict[str, Any] | None:
    """What a tool is called with; None where the model wrote no JSON object."""
    try:
        value = json_value(call.arguments)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True, slots=True)
class Message:
    role: str  # one of ROLES
    content: str
    images: tuple[str, ...] = ()  # of a user: https://… or data:image/…;base64,…
    tool_calls: tuple[ToolCall, ...] = ()  # of an assistant
    tool_call_id: str = ""  # of a tool: the call that it answers
    name: str = ""  # of a tool: its name
    provider_data: str = ""  # of an assistant: what the provider wants back, such as signed reasoning, as it gave it


def form_of(message: Message) -> list[Any]:
    """Role and content, and an object of the other fields that are set: how messages are stored and hashed."""
    others = {name: value for name in _OTHER_FIELDS if (value := getattr(message, name))}
    return [message.role, message.content, others] if others else [message.role, message.content]


_OTHER_FIELDS = ("images", "tool_calls", "tool_call_id", "name", "provider_data")


def message_of(form: Sequence[Any]) -> Message:
    """The message of a form that was stored as JSON."""
    role, content, *rest = form
    if not rest:
        return Message(role, content)
    others = dict(rest[0])
    images, calls = others.pop("images", ()), others.pop("tool_calls", ())
    return Message(role, content, tuple(images), tuple(ToolCall(**call) for call in calls), **others)


@dataclass(frozen=True, slots=True)
class Tool:
    """What a model may ask to be called."""

    name: str
    description: str = ""
    parameters: JsonObject = field(default_factory=dict)  # JSON Schema of the arguments


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    model: str  # provider/model, split at the first /
    messages: tuple[Message, ...]
    params: JsonObject  # what is set is sent; None never stands here
    timeout: float = 60.0  # seconds in all, waits and retries included
    once: bool = False  # a call whose answer is lost is for the caller to repeat, who has a budget to keep
    tools: tuple[Tool, ...] = ()
    tool_choice: str = ""  # auto, none, required or a tool's name; "" is not sent
    response_schema: JsonObject | None = None  # JSON Schema that the answer must match
    experiment_id: str = ""  # limits are shared among experiments in turn; "" waits for this one answer: it comes first


def fault_of(request: CompletionRequest) -> str | None:
    """Why no provider is to be asked this, with the field; None for a question."""
    if not request.messages:
        return "messages: there is none; give one at least"
    for index, message in enumerate(request.messages):
        role = message.role
        if role not in ROLES:
            return f"messages[{index}].role: {role!r} is none; use one of {', '.join(ROLES)}"
        if message.images and role != "user":
            return f"messages[{index}].images: only a user shows images, not {role!r}; put them into a user's message"
        if message.tool_calls and role != "assistant":
            return f"messages[{index}].tool_calls: only an assistant calls tools, not {role!r}"
    choice = request.tool_choice
    if choice and choice not in TOOL_CHOICES and all(tool.name != choice for tool in request.tools):
        return f"tool_choice: {choice!r} is none of {', '.join(TOOL_CHOICES)}, and no tool in 'tools' has that name"
    return None


FINISH_REASONS = ("stop", "length", "content_filter", "tool_calls", "other")


@dataclass(frozen=True, slots=True)
class Completion:
    output: str
    model: str  # what answered, in the provider's words
    finish_reason: str  # one of FINISH_REASONS
    tokens_in: int | None = None  # None where the provider did not say
    tokens_out: int | None = None
    tokens_reasoning: int | None = None  # part of tokens_out
    tokens_cached_in: int | None = None  # part of tokens_in
    latency_ms: int = 0  # of the request that was answered
    ttft_ms: int | None = None  # set where the answer was streamed
    cost_nanousd: int | None = None  # None where the price is unknown, which is never 0
    attempts: int = 1  # HTTP requests made
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()  # what it asks for
    tokens_cache_write_in: int | None = None  # part of tokens_in: written into the provider's own prompt cache
    logprobs: Json = None  # where asked for: a list of {token, logprob, top: [{token, logprob}]}
    provider_data: str = ""  # what the provider wants back as Message.provider_data
    price_version: str = ""  # the price list of cost_nanousd; "" where the price is unknown
    fallback: bool = False  # another model than the one asked answered; `model` is its provider/model


@dataclass(frozen=True, slots=True)
class Price:
    """Nano-USD per million tokens: integers, though a token may cost less than a nano-dollar."""

    input_nanousd_per_mtok: int
    output_nanousd_per_mtok: int
    request_nanousd: int = 0  # for each call, beside its tokens

    @property
    def is_free(self) -> bool:
        return not (self.input_nanousd_per_mtok or self.output_nanousd_per_mtok or self.request_nanousd)


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """What is known of a model before it is asked. `problem` is None where it can be asked."""

    model: str
    problem_reason: str | None = None  # UNKNOWN_PROVIDER, PROVIDER_CREDENTIALS, INVALID_ARGUMENT
    problem: str | None = None
    price: Price | None = None  # the most that a call may cost, to reserve by; None where nobody knows
    endpoint: str = ""  # identity of the provider's address, which may change the answer: part of the cache key
    list_price: Price | None = None  # what a plain call costs now, for estimates; None where not said
    price_version: str = ""  # of the list price
    price_unknown: bool = False  # `price` is what the operator lets budgets reserve where nobody knows
    batches: bool = False  # its provider answers batches
    batch_price: Price | None = None  # what a plain call costs in a batch

    @property
    def most_in_batch(self) -> Price | None:
        """The most that a call may cost in a batch: as much less than else as a plain one costs less."""
        most, plain, batched = self.price, self.list_price, self.batch_price
        if most is None or plain is None or batched is None:
            return most
        return Price(
            _less(most.input_nanousd_per_mtok, plain.input_nanousd_per_mtok, batched.input_nanousd_per_mtok),
            _less(most.output_nanousd_per_mtok, plain.output_nanousd_per_mtok, batched.output_nanousd_per_mtok),
            _less(most.request_nanousd, plain.request_nanousd, batched.request_nanousd),
        )


def _less(most: int, plain: int, batched: int) -> int:
    return -(-most * batched // plain) if plain else most


@dataclass(frozen=True, slots=True)
class LimitState:
    """How far a model may be asked with one key, as the Adapter that answers sees it now."""

    key: str  # its name and the deployment; "" where there is one
    max_concurrency: int  # of all Adapters together, configured or found out
    in_flight: int  # of this Adapter
    waiting: int  # in this Adapter
    waits_for: str = ""  # concurrency, rate, quota or pause; "" where a question would go at once
    wait_ms: int = 0  # where known
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_left: int | None = None  # as the provider last said
    tokens_left: int | None = None
    adapters: int = 1  # that share the limit


@dataclass(frozen=True, slots=True)
class ModelInfo:
    model: str
    provider: str
    available: bool
    problem: str | None = None
    price: Price | None = None
    price_version: str = ""
    limits: tuple[LimitState, ...] = ()  # by key, of those with which it was asked


OnDelta: TypeAlias = Callable[[str], None]
"""Hears each piece of an output, in order and none of them empty."""


class CompletionGateway(Protocol):
    """The Adapter: its core when embedded, its client when distributed."""

    async def complete(self, request: CompletionRequest, on_delta: OnDelta | None = None) -> Completion:
        """Raises InvalidArgument, CompletionFailed and its kind, UnknownProvider or ServiceUnavailable. `on_delta`
        hears the output piece by piece where the provider can stream; what fails after the first piece is not tried
        again."""
        ...

    async def check_models(self, models: Sequence[str]) -> list[ModelCheck]: ...

    async def list_models(self) -> list[ModelInfo]: ...
