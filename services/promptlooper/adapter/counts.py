"""What an Adapter counts of its work."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from promptlooper.completion import Completion
from promptlooper.counting import ANSWERS, Histogram
from promptlooper.embeddings import Embeddings

NAMED_MODELS = 100  # of a provider
OTHER = "other"


@dataclass(slots=True)
class AdapterCounts:
    """Providers are those of the configuration. A model has a name of its own from its first answer on, up to a number
    of them: callers may ask for any name, and each would be kept for ever."""

    attempts: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # by provider, model and outcome
    seconds: dict[tuple[str, str], Histogram] = field(default_factory=lambda: defaultdict(lambda: Histogram(ANSWERS)))
    in_flight: Counter[str] = field(default_factory=Counter)  # attempts, by provider
    completions: Counter[tuple[str, str]] = field(default_factory=Counter)  # by provider and reason, "ok" for none
    embeddings: Counter[tuple[str, str]] = field(default_factory=Counter)  # calls, as completions
    tokens: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # by provider, model and direction
    tokens_given_up: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # as tokens
    cost_nanousd: Counter[tuple[str, str]] = field(default_factory=Counter)
    cost_unknown: Counter[str] = field(default_factory=Counter)
    batches: Counter[str] = field(default_factory=Counter)  # submitted, by provider
    batch_items: Counter[str] = field(default_factory=Counter)  # questions in them
    resting: Callable[[], Counter[tuple[str, str, str]]] = Counter  # models avoided, by provider, deployment and key
    _named: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def model(self, provider: str, model: str, *, answered: bool = False) -> str:
        named = self._named[provider]
        if model in named:
            return model
        if not answered or len(named) >= NAMED_MODELS:
            return OTHER
        named.add(model)
        return model

    def attempted(self, provider: str, model: str, outcome: str, seconds: float) -> None:
        name = self.model(provider, model, answered=outcome == "ok")
        self.attempts[provider, name, outcome] += 1
        self.seconds[provider, name].add(seconds)

    def gave_up(self, provider: str, model: str, tokens_in: int, tokens_out: int) -> None:
        """What was heard of an answer that nobody will have: it may be billed."""
        name = self.model(provider, model, answered=True)
        self.tokens_given_up[provider, name, "input"] += tokens_in
        self.tokens_given_up[provider, name, "output"] += tokens_out

    def completed(self, provider: str, model: str, completion: Completion) -> None:
        name = self.model(provider, model, answered=True)
        self.completions[provider, "ok"] += 1
        self.tokens[provider, name, "input"] += completion.tokens_in or 0
        self.tokens[provider, name, "output"] += completion.tokens_out or 0
        self.cost_nanousd[provider, name] += completion.cost_nanousd or 0
        self.cost_unknown[provider] += completion.cost_nanousd is None

    def embedded(self, provider: str, model: str, embeddings: Embeddings) -> None:
        """Of one request of perhaps several of a call: each is paid for, whatever comes of the others."""
        name = self.model(provider, model, answered=True)
        self.tokens[provider, name, "input"] += embeddings.tokens_in or 0
        self.cost_nanousd[provider, name] += embeddings.cost_nanousd or 0
        self.cost_unknown[provider] += embeddings.cost_nanousd is None
