"""Batches to their messages and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from promptlooper.batches import BatchItem, BatchResult, BatchState, BatchStatus, SubmittedBatch
from promptlooper.errors import InvalidArgument, TooLarge
from promptlooper.v1 import adapter_service_pb2 as pb
from promptlooper.wire.completion import (
    completion_from_pb,
    completion_to_pb,
    error_from_pb,
    error_to_pb,
    request_from_pb,
    request_to_pb,
)
from promptlooper.wire.limits import BATCH_BYTES, BATCH_ITEMS, MAX_MESSAGE
from promptlooper.wire.scalars import moment, timestamp

_STATES = {state: pb.BatchState.Value(f"BATCH_STATE_{state.name}") for state in BatchState}
_REASONS = 256 * 1024  # bytes: beside it 50,000 ids fit into a message
_NAMES = {number: state for state, number in _STATES.items()}


def item_to_pb(item: BatchItem) -> pb.BatchItem:
    return pb.BatchItem(item_id=item.item_id, request=request_to_pb(item.request))


def item_from_pb(message: pb.BatchItem) -> BatchItem:
    return BatchItem(message.item_id, request_from_pb(message.request, f"items[{message.item_id}].request"))


def result_to_pb(result: BatchResult) -> pb.BatchItemResult:
    if result.completion is not None:
        return pb.BatchItemResult(item_id=result.item_id, completion=completion_to_pb(result.completion))
    return pb.BatchItemResult(item_id=result.item_id, error=None if result.error is None else error_to_pb(result.error))


def result_from_pb(message: pb.BatchItemResult) -> BatchResult:
    which = message.WhichOneof("result")
    if which == "completion":
        return BatchResult(message.item_id, completion_from_pb(message.completion))
    return BatchResult(message.item_id, error=error_from_pb(message.error) if which else None)


def submitted_to_pb(submitted: SubmittedBatch) -> pb.SubmitBatchResponse:
    """In one message: of refused items the first say why, as far as there is room, and all that they are."""
    room = _REASONS
    message = pb.SubmitBatchResponse(batch=submitted.batch)
    for result in submitted.refused:
        refused = result_to_pb(result)
        room -= refused.ByteSize()
        message.refused.append(refused if room >= 0 else pb.BatchItemResult(item_id=result.item_id))
    return message


def submitted_from_pb(message: pb.SubmitBatchResponse) -> SubmittedBatch:
    return SubmittedBatch(message.batch, tuple(result_from_pb(each) for each in message.refused))


def status_to_pb(status: BatchStatus) -> pb.BatchStatus:
    return pb.BatchStatus(
        state=_STATES[status.state],
        total=status.total,
        answered=status.answered,
        failed=status.failed,
        expires_at=timestamp(status.expires_at),
        message=status.message,
        too_much=status.too_much,
    )


def status_from_pb(message: pb.BatchStatus) -> BatchStatus:
    state = _NAMES.get(message.state)
    if state is None:
        raise InvalidArgument("the state of the batch is not known to this version", field="state")
    return BatchStatus(
        state,
        message.total,
        message.answered,
        message.failed,
        moment(message.expires_at) if message.HasField("expires_at") else None,
        message.message,
        message.too_much,
    )


def batch_messages(
    model: str, label: str, items: Sequence[BatchItem], *, again: bool
) -> Iterator[pb.SubmitBatchRequest | BatchResult]:
    """A batch in pieces that fit into messages, and the items that fit into none, refused."""
    message, room = pb.SubmitBatchRequest(model=model, label=label, again=again), BATCH_BYTES
    for item in items:
        sent = item_to_pb(item)
        if (size := sent.ByteSize()) > MAX_MESSAGE:
            yield BatchResult(
                item.item_id, error=TooLarge(f"it has {size} bytes, and at most {MAX_MESSAGE} can be sent")
            )
            continue
        if message.items and (size > room or len(message.items) == BATCH_ITEMS):
            yield message
            message, room = pb.SubmitBatchRequest(), BATCH_BYTES
        message.items.append(sent)
        room -= size
    yield message
