"""Who may ask a provider now: what the gateway sees of it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from promptlooper.adapter.retrying import Failure
from promptlooper.completion import Completion, CompletionRequest


class Lane(NamedTuple):
    """What a provider counts together: one model, asked with one key."""

    provider: str
    model: str
    key: str = ""  # a name of the key, where the provider has several; never the key itself


class Held(Exception):
    """Raised instead of a permit that would take longer than a caller should sleep."""

    def __init__(self, why: str, retry_after: float, *, by_provider: bool) -> None:
        super().__init__(why)
        self.why = why
        self.retry_after = retry_after  # seconds
        self.by_provider = by_provider  # it asked to wait; else others are before the caller


class Permit(Protocol):
    """The right to make one attempt. `release` it in any case; what was not said by then counts as given up."""

    def answered(self, completion: Completion) -> None: ...

    def failed(self, failure: Failure) -> None: ...

    def release(self) -> None: ...


class Limiter(Protocol):
    async def permit(self, lane: Lane, request: CompletionRequest) -> Permit:
        """Waits for its turn; raises Held where that takes too long. A permit is not held while a retry waits."""
        ...
