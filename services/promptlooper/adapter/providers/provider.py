"""What the gateway needs of a provider, whatever wire format it speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from promptlooper.adapter.cost import Prices
from promptlooper.adapter.heard import Heard
from promptlooper.completion import Completion, CompletionRequest
from promptlooper.embeddings import EmbeddingRequest, Embeddings
from promptlooper.errors import DomainError, ProviderCredentials, ProviderRejected, UnknownProvider

if TYPE_CHECKING:
    from promptlooper.adapter.batch.format import BatchProvider


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a model can't be asked: PROVIDER_CREDENTIALS or INVALID_ARGUMENT, and a sentence that says what to do."""

    reason: str
    message: str


def error_of_problem(problem: Problem, model: str) -> DomainError:
    """`model` is the `provider/model` that can't be asked."""
    provider = model.partition("/")[0]
    if problem.reason == "PROVIDER_CREDENTIALS":
        return ProviderCredentials(problem.message, provider=provider, model=model)
    if problem.reason == "UNKNOWN_PROVIDER":
        return UnknownProvider(problem.message, provider=provider, model=model)
    return ProviderRejected(problem.message, provider=provider, model=model)


def no_batches(provider: str) -> Problem:
    message = f"provider {provider!r} answers no batches; ask it directly ('execution: direct')"
    return Problem("INVALID_ARGUMENT", message)


class Provider(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def prices(self) -> Prices: ...

    @property
    def endpoint(self) -> str:
        """Identity of what answers: hashed, it is part of the cache key."""
        ...

    async def complete(self, model: str, request: CompletionRequest, heard: Heard | None = None) -> Completion:
        """One attempt, without cost; raises AttemptFailed. A caller that cancels leaves no open request behind.
        `heard` asks for a stream and hears its pieces."""
        ...

    @property
    def embeds(self) -> int:
        """How many texts it embeds in one request; 0 where it has no embeddings."""
        ...

    async def embed(self, model: str, request: EmbeddingRequest) -> Embeddings:
        """One attempt of at most `embeds` texts, as `complete`."""
        ...

    def problem(self, model: str) -> Problem | None:
        """What is known to be wrong before `model` is asked. Calls nobody."""
        ...

    def batches(self, model: str) -> BatchProvider | Problem:
        """Those of a model that can be asked, or why there are none. Calls nobody."""
        ...

    def models(self) -> list[str]:
        """Models known by name; others may be taken too."""
        ...

    async def aclose(self) -> None: ...
