"""What is ready for a stream's reader: pieces of outputs and results, in the order in which they came."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from promptlooper.streaming import parts_of
from promptlooper.wire.limits import BATCH_BYTES, BATCH_ITEMS, Measured

ResultT = TypeVar("ResultT", bound=Measured)


@dataclass(slots=True)
class Batch(Generic[ResultT]):
    """One message. Its deltas come before its results."""

    deltas: list[tuple[int, str]] = field(default_factory=list)  # with the id of their item
    results: list[ResultT] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Told:
    """Pieces of one item's output, joined. As UTF-8, which takes the least room and is measured at once."""

    item_id: int
    text: bytearray = field(default_factory=bytearray)


class Ready(Generic[ResultT]):
    """A queue that joins: of an item's output waits one text, however slow the reader, and a further one for each MiB.
    `len()` is about the number of results."""

    def __init__(self) -> None:
        self._queue: deque[tuple[ResultT, int] | _Told] = deque()
        self._growing: dict[int, _Told] = {}  # texts in the queue that the next piece of their item goes to

    def __bool__(self) -> bool:
        return bool(self._queue)

    def __len__(self) -> int:
        return len(self._queue) - len(self._growing)

    def put(self, result: ResultT) -> None:
        self._queue.append((result, result.ByteSize()))

    def tell(self, item_id: int, piece: str) -> None:
        for part in parts_of(piece):
            self._add(item_id, part.encode())

    def _add(self, item_id: int, piece: bytes) -> None:
        told = self._growing.get(item_id)
        if told is None or len(told.text) + len(piece) > BATCH_BYTES:
            told = self._growing[item_id] = _Told(item_id)
            self._queue.append(told)
        told.text.extend(piece)

    def next_batch(self) -> Batch[ResultT]:
        """As much as one message takes, or one result that is larger."""
        batch: Batch[ResultT] = Batch()
        room = BATCH_BYTES
        for _ in range(min(len(self._queue), BATCH_ITEMS)):
            first = self._queue[0]
            size = len(first.text) if isinstance(first, _Told) else first[1]
            if size > room and room < BATCH_BYTES:
                break
            room -= size
            self._queue.popleft()
            if isinstance(first, _Told):
                batch.deltas.append((first.item_id, first.text.decode()))
                if self._growing.get(first.item_id) is first:
                    del self._growing[first.item_id]
            else:
                batch.results.append(first[0])
        return batch
