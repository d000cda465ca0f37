"""What the formats of embeddings have in common. No I/O."""

from __future__ import annotations

import binascii
import struct
from array import array
from base64 import b64decode
from collections.abc import Sequence
from math import isfinite
from typing import Protocol

from promptlooper.adapter.providers.bodies import malformed
from promptlooper.adapter.providers.refusal import refusal
from promptlooper.embeddings import EmbeddingRequest, Embeddings, Vector


class EmbeddingDialect(Protocol):
    """One format, beside the provider's `Dialect`, which knows its key and its errors."""

    at_once: int
    """How many texts go in one request: so many that the answer is not larger than what is read of one."""

    def path(self, model: str) -> str: ...

    def body(self, model: str, request: EmbeddingRequest) -> bytes:
        """Raises AttemptFailed, kind PERMANENT, for what this provider cannot do."""
        ...

    def embeddings(self, body: bytes, model: str, request: EmbeddingRequest) -> Embeddings:
        """The answer in a 200 response. Raises AttemptFailed where there is none."""
        ...


def embeddings_of(
    found: Sequence[object], request: EmbeddingRequest, *, model: str, tokens_in: int | None
) -> Embeddings:
    """Raises AttemptFailed where it is not one vector for each text, all of one length and of that asked for."""
    if len(found) != len(request.inputs):
        raise malformed(f"it has {len(found)} vectors for {len(request.inputs)} texts")
    vectors = tuple(_vector(one) for one in found)
    length = len(vectors[0])
    if not length or any(len(vector) != length for vector in vectors):
        raise malformed("its vectors are empty or not of one length")
    if request.dimensions is not None and length != request.dimensions:
        raise refusal(
            f"its vectors have {length} numbers, whatever was asked for; set 'dimensions' to that, or leave it out"
        )
    return Embeddings(vectors, model, tokens_in)


def _vector(value: object) -> Vector:
    """Of a list of numbers, or of base64 of little-endian 32-bit floats."""
    try:
        if isinstance(value, str):
            data = b64decode(value, validate=True)
            value = struct.unpack(f"<{len(data) // 4}f", data)
        if not isinstance(value, list | tuple):
            raise TypeError
        vector = array("f", value)
    except (TypeError, OverflowError, struct.error, binascii.Error):
        raise malformed("a vector is not a list of numbers") from None
    if not isfinite(sum(vector)):
        raise malformed("a vector has numbers that are not finite")
    return vector
