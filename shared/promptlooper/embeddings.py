"""Embeddings: texts as vectors."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from promptlooper.errors import InvalidArgument, TooLarge
from promptlooper.jsonvalue import JsonObject

MAX_INPUTS = 2_048
MAX_INPUT_BYTES = 1024 * 1024  # of all texts, in UTF-8
MAX_NUMBERS = 900_000  # of all vectors: what one message takes

Vector: TypeAlias = "array[float]"
"""Of 32-bit floats (typecode "f"), as models and the wire have them."""


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    model: str  # provider/model, split at the first /
    inputs: tuple[str, ...]
    dimensions: int | None = None  # how many numbers a vector has, where the model lets one choose
    params: JsonObject = field(default_factory=dict)  # the provider's own
    timeout: float = 60.0  # seconds in all, waits and retries included


@dataclass(frozen=True, slots=True)
class Embeddings:
    vectors: tuple[Vector, ...]  # in the order of the inputs, all of one length
    model: str  # what answered, in the provider's words
    tokens_in: int | None = None  # None where the provider did not say
    latency_ms: int = 0  # of the requests that were answered, added up
    cost_nanousd: int | None = None  # None where the price is unknown, which is never 0
    price_version: str = ""  # the price list of cost_nanousd; "" where the price is unknown
    attempts: int = 1  # HTTP requests made


class EmbeddingGateway(Protocol):
    """The Adapter's embeddings: its core when embedded, its client when distributed."""

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Raises what `complete` raises, InvalidArgument and TooLarge. All vectors are of the model that was asked for:
        no fallback answers in its place."""
        ...


def check_embedding_request(request: EmbeddingRequest) -> None:
    """Raises InvalidArgument or TooLarge for what no provider is to be asked."""
    inputs, dimensions = request.inputs, request.dimensions
    if not inputs:
        raise InvalidArgument("inputs: there is no text; give one at least", field="inputs")
    if "" in inputs:
        message = f"inputs[{inputs.index('')}]: the text is empty, and has no embedding; leave it out"
        raise InvalidArgument(message, field="inputs")
    if dimensions is not None and dimensions < 1:
        raise InvalidArgument(f"dimensions: must be at least 1, and is {dimensions}", field="dimensions")
    if len(inputs) > MAX_INPUTS:
        raise TooLarge(f"inputs: at most {MAX_INPUTS} may be sent at once, not {len(inputs)}; send fewer")
    if (size := sum(len(text.encode()) for text in inputs)) > MAX_INPUT_BYTES:
        raise TooLarge(f"inputs: they have {size} bytes, and at most {MAX_INPUT_BYTES} may be sent at once; send fewer")
    if dimensions is not None:
        check_answer_fits(len(inputs), dimensions)


def check_answer_fits(inputs: int, dimensions: int) -> None:
    """Raises TooLarge where one message can't take so many vectors."""
    if inputs * dimensions > MAX_NUMBERS:
        raise TooLarge(
            f"inputs: {inputs} vectors of {dimensions} numbers are more than one answer takes; "
            f"send at most {MAX_NUMBERS // dimensions} texts at once"
        )
