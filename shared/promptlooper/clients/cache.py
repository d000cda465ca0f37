"""The Cache over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import grpc

from promptlooper.caching import CacheEntry, CacheStats, Found, Lookup, ResponseCache
from promptlooper.errors import (
    CacheUnavailable,
    DomainError,
    InvalidArgument,
    ServiceUnavailable,
    TooLarge,
)
from promptlooper.rpc.client import domain_errors, open_channel
from promptlooper.rpc.security import ChannelSecurity
from promptlooper.v1 import cache_service_pb2 as pb
from promptlooper.v1.cache_service_pb2_grpc import CacheServiceStub
from promptlooper.wire.caching import entry_to_pb, found_from_pb, lookup_to_pb, scope_for, stats_from_pb
from promptlooper.wire.limits import MAX_ITEMS, MAX_MESSAGE, chunks

AnswerT = TypeVar("AnswerT")

DEADLINE = 1.0  # seconds: a slow cache is worse than none


@asynccontextmanager
async def connected(address: str, *, security: ChannelSecurity | None = None) -> AsyncIterator[CacheClient]:
    async with open_channel(address, pb.DESCRIPTOR.services_by_name["CacheService"], security=security) as channel:
        yield CacheClient(channel, address)


class CacheClient(ResponseCache):
    """One RPC per call; lists that are too long for a message take several. What a cache can't help raises
    CacheUnavailable or ServiceUnavailable; InvalidArgument and TooLarge pass."""

    def __init__(self, channel: grpc.aio.Channel, address: str, *, deadline: float = DEADLINE) -> None:
        self._stub = CacheServiceStub(channel)
        self._address = address
        self._deadline = deadline

    async def lookup(self, lookups: Sequence[Lookup], claimant_id: str) -> list[Found]:
        found: list[Found] = []
        for items in chunks([lookup_to_pb(lookup) for lookup in lookups]):
            with self._errors():
                request = pb.LookupRequest(items=items, claimant_id=claimant_id)
                response = await self._stub.Lookup(request, timeout=self._deadline)
                found += [found_from_pb(result) for result in response.results]
        return self._all(found, lookups)

    async def renew(self, keys: Sequence[str], claimant_id: str) -> list[bool]:
        held: list[bool] = []
        for some in _some(keys):
            with self._errors():
                request = pb.RenewRequest(keys=some, claimant_id=claimant_id)
                held += (await self._stub.Renew(request, timeout=self._deadline)).held
        return self._all(held, keys)

    async def store(self, entries: Sequence[CacheEntry], claimant_id: str) -> None:
        """Values that are too large are not stored: the others are, the leases end, and TooLarge is raised."""
        messages = [entry_to_pb(entry) for entry in entries]
        large = [message.key for message in messages if message.ByteSize() > MAX_MESSAGE]
        refused: TooLarge | None = None
        for some in chunks([message for message in messages if message.ByteSize() <= MAX_MESSAGE]):
            try:
                with self._errors():
                    request = pb.StoreRequest(entries=some, claimant_id=claimant_id)
                    await self._stub.Store(request, timeout=self._deadline)
            except TooLarge as error:
                refused = error
        if large:
            await self.release(large, claimant_id)
            refused = TooLarge(
                f"the value of key {large[0]!r} is too large to be stored: {MAX_MESSAGE} bytes are the most"
            )
        if refused is not None:
            raise refused

    async def release(self, keys: Sequence[str], claimant_id: str) -> None:
        for some in _some(keys):
            with self._errors():
                request = pb.ReleaseRequest(keys=some, claimant_id=claimant_id)
                await self._stub.Release(request, timeout=self._deadline)

    async def purge(self, scope: str, model: str = "") -> int:
        with self._errors():
            return (await self._stub.Purge(pb.PurgeRequest(scope=scope_for(scope, model), model=model))).deleted

    async def stats(self) -> CacheStats:
        with self._errors():
            return stats_from_pb(await self._stub.GetStats(pb.GetStatsRequest()))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with domain_errors(self._address, "cache"):
                yield
        except (CacheUnavailable, ServiceUnavailable, InvalidArgument, TooLarge):
            raise
        except DomainError as error:  # too slow, leaving, a fault of its own: all the same to who asks
            raise CacheUnavailable(error.message, address=self._address) from error

    def _all(self, answers: list[AnswerT], asked: Sequence[object]) -> list[AnswerT]:
        if len(answers) != len(asked):
            raise CacheUnavailable(
                f"the Cache at {self._address} gave {len(answers)} answers to {len(asked)} questions",
                address=self._address,
            )
        return answers


def _some(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), MAX_ITEMS):
        yield keys[start : start + MAX_ITEMS]
