"""Questions to models and their answers: what the Runner asks of the Adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from promptlooper.jsonvalue import JsonObject


@dataclass(frozen=True, slots=True)
class Message:
    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    model: str  # provider/model, split at the first /
    messages: tuple[Message, ...]
    params: JsonObject  # what is set is sent; None never stands here
    timeout: float = 60.0  # seconds in all, waits and retries included
    once: bool = False  # a call whose answer is lost is for the caller to repeat, who has a budget to keep


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


@dataclass(frozen=True, slots=True)
class Price:
    """Nano-USD per million tokens: integers, though a token may cost less than a nano-dollar."""

    input_nanousd_per_mtok: int
    output_nanousd_per_mtok: int


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """What is known of a model before it is asked. `problem` is None where it can be asked."""

    model: str
    problem_reason: str | None = None  # UNKNOWN_PROVIDER, PROVIDER_CREDENTIALS, INVALID_ARGUMENT
    problem: str | None = None
    price: Price | None = None  # the most that a token may cost; None where unknown or with a fee per request
    endpoint: str = ""  # identity of the provider's address, which may change the answer: part of the cache key


@dataclass(frozen=True, slots=True)
class ModelInfo:
    model: str
    provider: str
    available: bool
    problem: str | None = None
    price: Price | None = None


OnDelta: TypeAlias = Callable[[str], None]
"""Hears each piece of an output, in order and none of them empty."""


class CompletionGateway(Protocol):
    """The Adapter: its core when embedded, its client when distributed."""

    async def complete(self, request: CompletionRequest, on_delta: OnDelta | None = None) -> Completion:
        """Raises CompletionFailed and its kind, UnknownProvider or ServiceUnavailable. `on_delta` hears the output
        piece by piece where the provider can stream; what fails after the first piece is not tried again."""
        ...

    async def check_models(self, models: Sequence[str]) -> list[ModelCheck]: ...

    async def list_models(self) -> list[ModelInfo]: ...
