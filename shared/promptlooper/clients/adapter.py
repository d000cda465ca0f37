"""The Adapter over gRPC."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence, Set
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import count
from types import TracebackType

import grpc

from promptlooper.batches import (
    BatchGateway,
    BatchItem,
    BatchResult,
    BatchStatus,
    SubmittedBatch,
    refuse_unended,
)
from promptlooper.clients.completion_stream import CompletionStream, Heard, Lost
from promptlooper.completion import (
    Completion,
    CompletionGateway,
    CompletionRequest,
    ModelCheck,
    ModelInfo,
    OnDelta,
)
from promptlooper.embeddings import EmbeddingGateway, EmbeddingRequest, Embeddings, check_embedding_request
from promptlooper.errors import ServiceUnavailable, TooLarge
from promptlooper.rpc.client import away, domain_errors, is_name, open_channel, replicas_of
from promptlooper.rpc.security import ChannelSecurity
from promptlooper.tracing import current
from promptlooper.v1 import adapter_service_pb2 as pb
from promptlooper.v1.adapter_service_pb2_grpc import AdapterServiceStub
from promptlooper.wire.batches import batch_messages, result_from_pb, status_from_pb, submitted_from_pb
from promptlooper.wire.completion import check_from_pb, model_from_pb, request_to_pb
from promptlooper.wire.embeddings import embeddings_from_pb
from promptlooper.wire.embeddings import request_to_pb as embed_to_pb
from promptlooper.wire.limits import MAX_MESSAGE

MARGIN = 2.0  # seconds that an answer may take to travel: the Adapter ends what takes longer than its timeout
MAX_AGE = 60.0  # seconds after which a stream gives way to a new one, which may reach another replica of a name
FIRST_AGE = 5.0  # the same for the first, which is opened when perhaps one replica of a name is connected, and no more
NAME_STREAMS = 4  # to a name, which may stand for any number of replicas
REST = 1.0  # seconds that a replica which lost a question comes last
_RANKS = {grpc.ChannelConnectivity.READY: 0, grpc.ChannelConnectivity.TRANSIENT_FAILURE: 2}  # others: 1


@asynccontextmanager
async def connected(
    address: str, *, security: ChannelSecurity | None = None, max_age: float = MAX_AGE
) -> AsyncIterator[AdapterClient]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        service = pb.DESCRIPTOR.services_by_name["AdapterService"]
        channel = await enter(open_channel(address, service, security=security))
        parts = replicas_of(address)
        if len(parts) > 1:
            replicas = [await enter(open_channel(part, security=security)) for part in parts]
        else:
            replicas = [channel] * (NAME_STREAMS if is_name(address) else 1)
        yield await enter(AdapterClient(channel, address, replicas, max_age=max_age))


class AdapterClient(CompletionGateway, EmbeddingGateway, BatchGateway):
    """Questions travel on long-lived CompleteMany streams, one for each of `replicas`, by default one for `channel`,
    which takes the other calls. The same channel several times is for a name: round robin lets each of its streams
    begin at the next replica. What is ready in one tick of the event loop goes in one message. A question whose
    stream breaks, or whose Adapter is leaving, is put to another replica at once, to each but once; then
    ServiceUnavailable is raised, also for an Adapter that is slow or leaving. Close it before its channels."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        address: str,
        replicas: Sequence[grpc.aio.Channel] = (),
        *,
        margin: float = MARGIN,
        max_age: float = MAX_AGE,
    ) -> None:
        self._stub = AdapterServiceStub(channel)
        self._address = address
        self._margin = margin
        self._replicas = [_Replica(one, address, max_age) for one in replicas or (channel,)]  # the last used is last
        self._ids = count(1)
        self._closed = False

    async def complete(self, request: CompletionRequest, on_delta: OnDelta | None = None) -> Completion:
        heard = None if on_delta is None else Heard(on_delta)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.timeout
        left, tried = request.timeout, set[_Replica]()
        while True:
            item = pb.CompletionItem(
                item_id=next(self._ids),
                request=request_to_pb(request),
                traceparent=current.get(),
                deltas=on_delta is not None,
            )
            size = item.ByteSize()
            if size > MAX_MESSAGE:
                raise TooLarge(
                    f"the prompt to {request.model!r} has {size} bytes, and at most {MAX_MESSAGE} can be sent"
                )
            replica = self._next_replica(tried)
            try:
                completion = await replica.stream().ask(item, size, left + self._margin, heard)
                break
            except Lost as lost:
                replica.rest()
                tried.add(replica)
                left = deadline - loop.time()
                over = self._closed or left <= 0 or len(tried) == len(self._replicas)
                # Who has heard a part of an answer gets no second one.
                if over or (lost.sent and request.once) or (heard is not None and heard.told):
                    raise ServiceUnavailable(str(lost), sent=lost.sent, address=self._address) from lost
                request = replace(request, timeout=left)
        if heard is not None and not heard.told and completion.output:  # an Adapter of 0.1.0 tells no deltas
            heard(completion.output)
        return completion

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        check_embedding_request(request)
        try:
            with domain_errors(self._address, "adapter"):
                response = await self._stub.Embed(embed_to_pb(request), timeout=request.timeout + self._margin)
        except ServiceUnavailable as error:
            error.sent = True  # nobody knows whether it is billed
            raise
        return embeddings_from_pb(response)

    async def submit_batch(
        self, model: str, label: str, items: Sequence[BatchItem], *, again: bool = False
    ) -> SubmittedBatch:
        messages = []  # all before the first is sent: grpc makes a cancellation of what its iterator raises
        refused = []
        for message in batch_messages(model, label, items, again=again):
            if isinstance(message, BatchResult):
                refused.append(message)
            else:
                messages.append(message)
            await asyncio.sleep(0)
        if refused and len(refused) == len(items) and not again:
            return SubmittedBatch("", tuple(refused))
        with away(self._address, "adapter"):
            submitted = submitted_from_pb(await self._stub.SubmitBatch(iter(messages)))
        return replace(submitted, refused=(*refused, *submitted.refused))

    async def batch_status(self, batch: str) -> BatchStatus:
        with away(self._address, "adapter"):
            async for response in self._stub.GetBatch(pb.GetBatchRequest(batch=batch)):
                return status_from_pb(response.status)
        raise ServiceUnavailable("the Adapter said nothing of the batch", address=self._address)

    async def batch_results(self, batch: str) -> AsyncIterator[BatchResult]:
        with away(self._address, "adapter"):
            async for response in self._stub.GetBatch(pb.GetBatchRequest(batch=batch, with_results=True)):
                if response.HasField("status"):
                    refuse_unended(status_from_pb(response.status))
                for result in response.results:
                    yield result_from_pb(result)

    async def cancel_batch(self, batch: str) -> None:
        with away(self._address, "adapter"):
            await self._stub.CancelBatch(pb.CancelBatchRequest(batch=batch))

    async def check_models(self, models: Sequence[str]) -> list[ModelCheck]:
        with away(self._address, "adapter"):
            response = await self._stub.CheckModels(pb.CheckModelsRequest(models=models))
        return [check_from_pb(check) for check in response.checks]

    async def list_models(self) -> list[ModelInfo]:
        with away(self._address, "adapter"):
            response = await self._stub.ListModels(pb.ListModelsRequest())
        return [model_from_pb(model) for model in response.models]

    async def aclose(self) -> None:
        """Questions that have no answer yet fail with ServiceUnavailable."""
        self._closed = True
        await asyncio.gather(*(replica.aclose() for replica in self._replicas))

    async def __aenter__(self) -> AdapterClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _next_replica(self, tried: Set[_Replica]) -> _Replica:
        """Of those that were not tried and are there the one with the fewest questions, and of equals the one that was
        used the longest ago."""
        if len(self._replicas) == 1:
            return self._replicas[0]
        chosen = min((one for one in self._replicas if one not in tried), key=_Replica.rank)
        self._replicas.remove(chosen)
        self._replicas.append(chosen)
        return chosen


class _Replica:
    """One Adapter, or what one name stands for: the stream that takes questions, and those that wait for their last
    answers."""

    def __init__(self, channel: grpc.aio.Channel, address: str, max_age: float) -> None:
        self._channel = channel
        self._stub = AdapterServiceStub(channel)
        self._address = address
        self._max_age = max_age
        self._current: CompletionStream | None = None
        self._running: set[CompletionStream] = set()
        self._rests_until = 0.0
        self._next_age = min(FIRST_AGE, max_age)

    def rank(self) -> tuple[bool, int, int]:
        """Lower is better. Also lets an idle channel connect, so that a replica that is back is found."""
        state = self._channel.get_state(try_to_connect=True)
        resting = asyncio.get_running_loop().time() < self._rests_until
        return resting, _RANKS.get(state, 1), sum(len(stream) for stream in self._running)

    def rest(self) -> None:
        """A question was lost here: until the connection is known to be lost too, others come first."""
        self._rests_until = asyncio.get_running_loop().time() + REST

    def stream(self) -> CompletionStream:
        """A new one where it is missing or has grown old."""
        now = asyncio.get_running_loop().time()
        stream = self._current
        if stream is not None and not stream.retired and now >= stream.retire_at:
            stream.retire()
        if stream is None or stream.retired:
            # Not all Runners at once: each stream gets an age of its own.
            retire_at = now + self._next_age * random.uniform(0.8, 1.0)
            self._next_age = self._max_age
            stream = CompletionStream(self._stub.CompleteMany, self._address, retire_at, self._running.discard)
            self._current = stream
            self._running.add(stream)
        return stream

    async def aclose(self) -> None:
        await asyncio.gather(*(stream.aclose() for stream in self._running))
