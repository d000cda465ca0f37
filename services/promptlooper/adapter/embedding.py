"""One call for embeddings, in as many requests as its provider needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from promptlooper.clock import Clock
from promptlooper.completion import Completion
from promptlooper.embeddings import EmbeddingRequest, Embeddings, check_answer_fits
from promptlooper.errors import CompletionFailed, ProviderMalformed


async def in_parts(
    request: EmbeddingRequest, at_once: int, ask: Callable[[EmbeddingRequest], Awaitable[Embeddings]], clock: Clock
) -> Embeddings:
    """One after the other, within the request's time. Raises TooLarge as soon as it is known that no answer can take
    all vectors."""
    deadline = clock.monotonic() + request.timeout
    inputs, answers = request.inputs, list[Embeddings]()
    for start in range(0, len(inputs), at_once):
        part = replace(request, inputs=inputs[start : start + at_once], timeout=max(0.0, deadline - clock.monotonic()))
        try:
            answers.append(await ask(part))
        except CompletionFailed as error:
            error.attempts += _attempts(answers)
            raise
        check_answer_fits(len(inputs), len(answers[0].vectors[0]))
    return answers[0] if len(answers) == 1 else _joined(request.model, answers)


def _joined(model: str, answers: Sequence[Embeddings]) -> Embeddings:
    vectors = tuple(vector for answer in answers for vector in answer.vectors)
    if len({len(vector) for vector in vectors}) > 1:
        message = f"the vectors of model {model!r} are not of one length"
        raise ProviderMalformed(message, attempts=_attempts(answers), model=model)
    cost = _sum([answer.cost_nanousd for answer in answers])
    return Embeddings(
        vectors,
        answers[0].model,
        _sum([answer.tokens_in for answer in answers]),
        sum(answer.latency_ms for answer in answers),
        cost,
        "" if cost is None else answers[0].price_version,
        _attempts(answers),
    )


def _attempts(answers: Sequence[Embeddings]) -> int:
    return sum(answer.attempts for answer in answers)


def _sum(values: Sequence[int | None]) -> int | None:
    """None where one is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def as_billed(embeddings: Embeddings) -> Completion:
    """For the price: an answer without output."""
    return Completion("", embeddings.model, "stop", tokens_in=embeddings.tokens_in, tokens_out=0)
