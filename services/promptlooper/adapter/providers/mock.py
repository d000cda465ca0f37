"""A provider that answers from a script: for tests, dry runs and budgets, without network or model."""

from __future__ import annotations

import asyncio
import math
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

from promptlooper.adapter.cost import Prices
from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers.provider import Problem
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind, kind_of
from promptlooper.clock import Clock
from promptlooper.completion import Completion, CompletionRequest, ToolCall
from promptlooper.digest import sha256_hex
from promptlooper.embeddings import MAX_INPUTS, EmbeddingRequest, Embeddings, Vector

if TYPE_CHECKING:
    from promptlooper.adapter.batch.format import Answer as BatchAnswer
    from promptlooper.adapter.batch.format import BatchProvider

EXPIRED = "batch_expired"  # the code of an error that only a batch can make
_BUILT_IN = ("echo", "ok")
_DIMENSIONS = 256
_PIECES = re.compile(r"\s*\S+\s*|\s+")  # of a stream: words


@dataclass(frozen=True, slots=True)
class MockError:
    """An HTTP error as a provider would answer it; `times` per question, None is always."""

    status: int
    message: str = "scripted error"
    code: str = ""
    retry_after: float | None = None
    times: int | None = None


@dataclass(frozen=True, slots=True)
class MockRule:
    """Applies where `model` (exact) and `match` (searched in the last user message) fit; None fits everything."""

    model: str | None = None
    match: re.Pattern[str] | None = None
    text: str | None = None  # \1 and \g<name> stand for groups of `match` where `expand` is set
    expand: bool = False
    echo: bool = False
    delay: float = 0.0  # seconds
    error: MockError | None = None
    finish_reason: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    tool_calls: tuple[tuple[str, str], ...] = ()  # names and arguments of tools that it asks for


class MockProvider:
    """The first rule that fits answers; where none does, `echo` repeats the last user message and `ok` says ok. What a
    tool answered counts as a user's message.

    Tokens are words, unless a rule says otherwise; `max_tokens` cuts as a model would. The same questions get the same
    answers in any order: errors are counted per question. A stream is a piece for each word.
    """

    def __init__(self, name: str, rules: Sequence[MockRule], *, prices: Prices, clock: Clock) -> None:
        self.name = name
        self.prices = prices
        self.embeds = MAX_INPUTS
        self._rules = tuple(rules)
        self.endpoint = _script_id(self._rules)
        self._clock = clock
        self._errors: Counter[tuple[int, str]] = Counter()
        self._batches: BatchProvider | None = None

    def models(self) -> list[str]:
        return sorted({*_BUILT_IN, *(r.model for r in self._rules if r.model), *self.prices.known_models()})

    def problem(self, model: str) -> Problem | None:
        if model in _BUILT_IN or any(rule.model in (None, model) for rule in self._rules):
            return None
        known = self.models()
        near = get_close_matches(model, known, 1)
        hint = f"did you mean {self.name + '/' + near[0]!r}?" if near else f"known are {', '.join(known)}"
        others = f"{'' if near else ';'} others need a rule in the providers file"
        message = f"provider {self.name!r} has no model {model!r}; {hint}{others}"
        return Problem("INVALID_ARGUMENT", message)

    async def complete(self, model: str, request: CompletionRequest, heard: Heard | None = None) -> Completion:
        started = self._clock.monotonic()
        rule, text = await self._ruled(model, _question(request))
        completion = _completion(rule, text, model, request)
        if heard is not None:
            for piece in _PIECES.findall(completion.output):
                heard(piece)
                await asyncio.sleep(0)
        return replace(completion, latency_ms=round((self._clock.monotonic() - started) * 1000))

    async def embed(self, model: str, request: EmbeddingRequest) -> Embeddings:
        """The same texts have the same vectors, of length 1, and texts that share words are near one another. Of a rule
        that fits the texts together its delay, error and tokens_in count."""
        started = self._clock.monotonic()
        rule, text = await self._ruled(model, "\n".join(request.inputs))
        _answered(rule, text)
        return Embeddings(
            tuple(_vector(text, request.dimensions or _DIMENSIONS) for text in request.inputs),
            model,
            sum(len(text.split()) for text in request.inputs) if rule.tokens_in is None else rule.tokens_in,
            round((self._clock.monotonic() - started) * 1000),
        )

    def batches(self, model: str) -> BatchProvider:
        if self._batches is None:
            from promptlooper.adapter.batch.mock import MockBatches

            self._batches = MockBatches(self._in_batch, self._clock)
        return self._batches

    def _in_batch(self, model: str, request: CompletionRequest) -> tuple[float, BatchAnswer]:
        """How long it takes, and the answer; an error with the code `batch_expired` is none."""
        from promptlooper.adapter.batch.format import Unanswered

        try:
            rule, text = self._answer(model, _question(request))
        except AttemptFailed as error:
            return 0.0, error.failure
        if text is None and rule.error is not None and rule.error.code == EXPIRED:
            return rule.delay, Unanswered.EXPIRED
        try:
            return rule.delay, _completion(rule, text, model, request)
        except AttemptFailed as error:
            return rule.delay, error.failure

    async def _ruled(self, model: str, question: str) -> tuple[MockRule, str | None]:
        """The rule that answers and its text, after its delay; no text is its error."""
        rule, text = self._answer(model, question)
        if rule.delay:
            await asyncio.sleep(rule.delay)
        return rule, text

    def _answer(self, model: str, question: str) -> tuple[MockRule, str | None]:
        """The rule that answers and its text; no text is its error."""
        for index, rule in enumerate(self._rules):
            if rule.model not in (None, model):
                continue
            found = rule.match.search(question) if rule.match else None
            if rule.match and found is None:
                continue
            if rule.error and self._still_fails(index, rule.error, question):
                return rule, None
            if rule.echo:
                return rule, question
            if rule.tool_calls and rule.text is None:
                return rule, ""
            if rule.text is not None:
                return rule, found.expand(rule.text) if found and rule.expand else rule.text
        if model in _BUILT_IN:
            return MockRule(), question if model == "echo" else "ok"
        raise AttemptFailed(
            Failure(Kind.PERMANENT, f"no rule of its script fits this question to model {model!r}", 404)
        )

    def _still_fails(self, index: int, error: MockError, question: str) -> bool:
        if error.times is None:
            return True
        self._errors[index, question] += 1
        return self._errors[index, question] <= error.times

    async def aclose(self) -> None:
        """Nothing is open."""


def _vector(text: str, dimensions: int) -> Vector:
    """Counts of words, each at a place that its SHA-256 says, over their root of squares."""
    counts = Counter(int(sha256_hex(word)[:8], 16) % dimensions for word in text.split() or [text])
    length = math.sqrt(sum(count * count for count in counts.values()))
    vector = array("f", bytes(4 * dimensions))
    for place, count in counts.items():
        vector[place] = count / length
    return vector


def _script_id(rules: Sequence[MockRule]) -> str:
    """Another script is another model: its answers are not taken from the cache of this one."""
    return sha256_hex([repr(rule) for rule in rules])[:16] if rules else ""


def _question(request: CompletionRequest) -> str:
    return next((m.content for m in reversed(request.messages) if m.role in ("user", "tool")), "")


def _answered(rule: MockRule, text: str | None) -> str:
    if text is not None:
        return text
    assert rule.error is not None
    error = rule.error
    kind = kind_of(error.status, error.code, error.message)
    raise AttemptFailed(Failure(kind, error.message, error.status, error.retry_after))


def _completion(rule: MockRule, text: str | None, model: str, request: CompletionRequest) -> Completion:
    """What a rule answers. Raises AttemptFailed, its error, where there is no text."""
    text = _answered(rule, text)
    finish_reason = rule.finish_reason or ("tool_calls" if rule.tool_calls else "stop")
    words = text.split()
    limit = request.params.get("max_tokens", request.params.get("max_completion_tokens"))
    if isinstance(limit, int) and len(words) > limit:
        text, words = " ".join(words[:limit]), words[:limit]
        finish_reason = rule.finish_reason or "length"
    words_in = sum(len(m.content.split()) for m in request.messages)
    return Completion(
        output=text,
        model=model,
        finish_reason=finish_reason,
        tokens_in=words_in if rule.tokens_in is None else rule.tokens_in,
        tokens_out=len(words) if rule.tokens_out is None else rule.tokens_out,
        tool_calls=tuple(ToolCall(f"call-{n}", *call) for n, call in enumerate(rule.tool_calls)),
    )
