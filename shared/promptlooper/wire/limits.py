"""How much goes in one message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Protocol, TypeVar

from promptlooper.errors import InvalidArgument

MAX_ITEMS = 1_000  # of a list that the Cache or the Scorer is asked about
MAX_BYTES = 3 * 1024 * 1024  # of the items of one message; grpc refuses what is over 4 MiB in all
BATCH_ITEMS, BATCH_BYTES = 256, 1024 * 1024  # of a message of CompleteMany
LARGEST_MESSAGE = 4 * 1024 * 1024  # bytes that grpc takes in all
MAX_MESSAGE = 3_670_016  # bytes (3.5 MiB) of one item that cannot be divided


class Measured(Protocol):
    def ByteSize(self) -> int: ...


MessageT = TypeVar("MessageT", bound=Measured)


def chunks(
    items: Sequence[MessageT], *, max_items: int = MAX_ITEMS, max_bytes: int = MAX_BYTES
) -> Iterator[list[MessageT]]:
    """The items in order, as many at a time as one message takes. One that is too large for any goes alone."""
    chunk: list[MessageT] = []
    room = max_bytes
    for item in items:
        size = item.ByteSize()
        if chunk and (size > room or len(chunk) == max_items):
            yield chunk
            chunk, room = [], max_bytes
        chunk.append(item)
        room -= size
    if chunk:
        yield chunk


def refuse_too_many(items: Sized, field: str) -> None:
    """A small message may hold a million empty items: what they become is not small."""
    if len(items) > MAX_ITEMS:
        message = f"{field}: at most {MAX_ITEMS} may be sent at once, not {len(items)}; send more messages"
        raise InvalidArgument(message, field=field)
