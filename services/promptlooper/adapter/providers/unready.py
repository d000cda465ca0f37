"""A provider that can't be asked until its operator has said more."""

from __future__ import annotations

from promptlooper.adapter.cost import Prices
from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers.provider import Problem
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind
from promptlooper.completion import Completion, CompletionRequest
from promptlooper.embeddings import EmbeddingRequest, Embeddings


class UnreadyProvider:
    def __init__(self, name: str, problem: Problem, *, prices: Prices) -> None:
        self.name = name
        self.prices = prices
        self.endpoint = ""
        self.embeds = 1
        self._problem = problem

    def problem(self, model: str) -> Problem | None:
        return self._problem

    def batches(self, model: str) -> Problem:
        return self._problem

    def models(self) -> list[str]:
        return self.prices.known_models()

    async def complete(self, model: str, request: CompletionRequest, heard: Heard | None = None) -> Completion:
        raise AttemptFailed(Failure(Kind.PERMANENT, self._problem.message))

    async def embed(self, model: str, request: EmbeddingRequest) -> Embeddings:
        raise AttemptFailed(Failure(Kind.PERMANENT, self._problem.message))

    async def aclose(self) -> None:
        """Nothing is open."""
