"""The Adapter's RPCs: convert in, ask the core, convert out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol, TypeAlias

import grpc

from promptlooper.adapter.batch.messages import batch_in, in_messages
from promptlooper.adapter.batches import GRACE, MAX_IN_FLIGHT, ItemStreams, completed
from promptlooper.batches import BatchGateway, BatchState
from promptlooper.completion import Completion, CompletionGateway, CompletionRequest, OnDelta
from promptlooper.embeddings import EmbeddingGateway
from promptlooper.errors import DomainError, TooLarge
from promptlooper.rpc.deadlines import is_deadline
from promptlooper.streaming import parts_of, told_by
from promptlooper.tracing import go_on_with
from promptlooper.v1 import adapter_service_pb2 as pb
from promptlooper.v1 import completion_pb2
from promptlooper.v1.adapter_service_pb2_grpc import AdapterServiceServicer, add_AdapterServiceServicer_to_server
from promptlooper.wire.batches import status_to_pb, submitted_to_pb
from promptlooper.wire.completion import check_to_pb, completion_to_pb, error_to_pb, model_to_pb, request_from_pb
from promptlooper.wire.embeddings import embeddings_to_pb
from promptlooper.wire.embeddings import request_from_pb as embed_from_pb
from promptlooper.wire.limits import MAX_MESSAGE, refuse_too_many

SERVICE = pb.DESCRIPTOR.services_by_name["AdapterService"]
SERVICE_NAME = SERVICE.full_name

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_Requests: TypeAlias = AsyncIterator[pb.CompleteManyRequest]


class AdapterCore(CompletionGateway, EmbeddingGateway, BatchGateway, Protocol):
    """What the RPCs ask."""


class AdapterServicer(AdapterServiceServicer):
    """`drain` is for the server's `on_drain`: without it open streams hold the server for its whole grace."""

    def __init__(self, core: AdapterCore, *, max_in_flight: int = MAX_IN_FLIGHT, grace: float = GRACE) -> None:
        self._core = core
        self._grace = grace
        self._streams = ItemStreams(self._answer, _failed, max_in_flight)
        self.drain = self._streams.drain

    def register(self, server: grpc.aio.Server) -> None:
        add_AdapterServiceServicer_to_server(self, server)

    async def Complete(self, request: pb.CompleteRequest, context: Context) -> pb.CompleteResponse:
        question = _within(request.request, context)
        return pb.CompleteResponse(completion=completion_to_pb(await self._core.complete(question)))

    async def StreamComplete(
        self, request: pb.StreamCompleteRequest, context: Context
    ) -> AsyncIterator[pb.StreamCompleteResponse]:
        question = _within(request.request, context)
        async with aclosing(told_by(partial(self._core.complete, question))) as told:
            async for ready in told:
                for text in parts_of("".join(piece for piece in ready if isinstance(piece, str))):
                    yield pb.StreamCompleteResponse(delta=text)
                if isinstance(ready[-1], Completion):
                    yield pb.StreamCompleteResponse(completion=completion_to_pb(ready[-1]))

    async def CompleteMany(
        self, request_iterator: _Requests, context: Context
    ) -> AsyncIterator[pb.CompleteManyResponse]:
        async with aclosing(self._streams.batches(_messages(request_iterator))) as batches:
            async for batch in batches:
                deltas = [pb.CompletionDelta(item_id=item_id, text=text) for item_id, text in batch.deltas]
                yield pb.CompleteManyResponse(results=batch.results, deltas=deltas)

    async def _answer(self, item: pb.CompletionItem, tell: OnDelta) -> pb.CompletionItemResult:
        if item.traceparent:
            go_on_with(item.traceparent)
        on_delta = tell if item.deltas else None
        completion = await completed(self._core, request_from_pb(item.request), on_delta, self._grace)
        result = pb.CompletionItemResult(item_id=item.item_id, completion=completion_to_pb(completion))
        if (size := result.ByteSize()) > MAX_MESSAGE:
            raise TooLarge(f"the answer has {size} bytes, and at most {MAX_MESSAGE} can be sent; ask for less")
        return result

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        return embeddings_to_pb(await self._core.embed(embed_from_pb(request, within=_left(context))))

    async def SubmitBatch(
        self, request_iterator: AsyncIterator[pb.SubmitBatchRequest], context: Context
    ) -> pb.SubmitBatchResponse:
        first, items = await batch_in(request_iterator)
        submitted = await self._core.submit_batch(first.model, first.label, items, again=first.again)
        return submitted_to_pb(submitted)

    async def GetBatch(self, request: pb.GetBatchRequest, context: Context) -> AsyncIterator[pb.GetBatchResponse]:
        status = await self._core.batch_status(request.batch)
        yield pb.GetBatchResponse(status=status_to_pb(status))
        if request.with_results and status.state is BatchState.ENDED:
            async with aclosing(in_messages(self._core.batch_results(request.batch))) as messages:
                async for results in messages:
                    yield pb.GetBatchResponse(results=results)

    async def CancelBatch(self, request: pb.CancelBatchRequest, context: Context) -> pb.CancelBatchResponse:
        await self._core.cancel_batch(request.batch)
        return pb.CancelBatchResponse()

    async def CheckModels(self, request: pb.CheckModelsRequest, context: Context) -> pb.CheckModelsResponse:
        refuse_too_many(request.models, "models")
        checks = await self._core.check_models(list(request.models))
        return pb.CheckModelsResponse(checks=[check_to_pb(check) for check in checks])

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[model_to_pb(model) for model in await self._core.list_models()])


async def _messages(
    requests: _Requests,
) -> AsyncIterator[tuple[Sequence[int], Sequence[pb.CompletionItem]]]:
    """Not a generator expression: that takes grpc's iterator at once, which warns where it is never read."""
    async for request in requests:
        yield request.cancelled_item_ids, request.items


def _within(message: completion_pb2.CompletionRequest, context: Context) -> CompletionRequest:
    """The question, with no more time than its caller has."""
    return request_from_pb(message, within=_left(context))


def _left(context: Context) -> float | None:
    """Seconds that the caller has; None where it did not say."""
    left = context.time_remaining()
    return left if is_deadline(left) else None


def _failed(item_id: int, error: DomainError) -> pb.CompletionItemResult:
    return pb.CompletionItemResult(item_id=item_id, error=error_to_pb(error))
