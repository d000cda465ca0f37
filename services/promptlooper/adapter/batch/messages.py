"""Batches in pieces that fit into messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from promptlooper.batches import LARGEST_BATCH, MOST_ITEMS, BatchItem, BatchResult
from promptlooper.errors import InvalidArgument, TooLarge
from promptlooper.v1 import adapter_service_pb2 as pb
from promptlooper.wire.batches import item_from_pb, result_to_pb
from promptlooper.wire.limits import BATCH_BYTES, BATCH_ITEMS, MAX_MESSAGE


async def batch_in(
    requests: AsyncIterator[pb.SubmitBatchRequest],
) -> tuple[pb.SubmitBatchRequest, list[BatchItem]]:
    """The first message, and the items of all. Raises InvalidArgument or TooLarge before it holds too much."""
    first: pb.SubmitBatchRequest | None = None
    items: list[BatchItem] = []
    size = 0
    async for request in requests:
        if first is None:
            first = request
        elif request.model or request.label or request.again:
            raise InvalidArgument("the batch is named in its first message only", field="model")
        size += request.ByteSize()
        if size > LARGEST_BATCH:
            raise TooLarge(f"the batch has more than {LARGEST_BATCH >> 20} MiB; put fewer questions into it")
        if len(items) + len(request.items) > MOST_ITEMS:
            raise InvalidArgument(f"a batch has at most {MOST_ITEMS} items; make several", field="items")
        items += map(item_from_pb, request.items)
    if first is None:
        raise InvalidArgument("there is no message; send the model, the label and items", field="model")
    return first, items


async def in_messages(results: AsyncIterator[BatchResult]) -> AsyncGenerator[list[pb.BatchItemResult], None]:
    """Results as many at a time as one message takes. One that no message takes is an error of its item."""
    piece: list[pb.BatchItemResult] = []
    room = BATCH_BYTES
    async for result in results:
        message = result_to_pb(result)
        if (size := message.ByteSize()) > MAX_MESSAGE:
            error = TooLarge(f"the answer has {size} bytes, and at most {MAX_MESSAGE} can be sent; ask for less")
            message = result_to_pb(BatchResult(result.item_id, error=error))
            size = message.ByteSize()
        if piece and (size > room or len(piece) == BATCH_ITEMS):
            yield piece
            piece, room = [], BATCH_BYTES
        piece.append(message)
        room -= size
    if piece:
        yield piece
