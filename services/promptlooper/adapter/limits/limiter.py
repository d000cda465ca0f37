"""Who may ask a provider now: what the gateway sees of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypeAlias

from promptlooper.adapter.retrying import Failure
from promptlooper.completion import Completion, CompletionRequest, LimitState
from promptlooper.embeddings import EmbeddingRequest

Question: TypeAlias = CompletionRequest | EmbeddingRequest


class Lane(NamedTuple):
    """What a provider counts together: one model, asked with one key."""

    provider: str
    model: str
    key: str = ""  # a name of the key, where the provider has several; never the key itself


class Held(Exception):
    """Raised instead of a permit that would take longer than a caller should sleep."""

    def __init__(self, waits_for: str, why: str, retry_after: float) -> None:
        super().__init__(why)
        self.waits_for = waits_for  # concurrency, rate, quota or pause
        self.why = why
        self.retry_after = retry_after  # seconds


class Permit(Protocol):
    """The right to make one attempt. `release` it in any case; what was not said by then counts as given up."""

    def answered(self, completion: Completion) -> None: ...

    def failed(self, failure: Failure) -> None: ...

    def release(self) -> None: ...


class Limiter(Protocol):
    @property
    def held(self) -> Mapping[tuple[str, str], int]:
        """How often Held was raised, by provider and what there was to wait for."""
        ...

    def states(self) -> Mapping[Lane, LimitState]:
        """Of the lanes that were used."""
        ...

    async def permit(self, lane: Lane, request: Question) -> Permit:
        """Waits for its turn; raises Held where that takes too long. A permit is not held while a retry waits."""
        ...
