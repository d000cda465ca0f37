"""The Scorer over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc

from promptlooper.errors import ServiceUnavailable
from promptlooper.rpc.client import away, open_channel
from promptlooper.rpc.security import ChannelSecurity
from promptlooper.scoring import ScoreItem, ScorerCheck, ScorerInfo, ScoreValue, ScoringService
from promptlooper.v1 import scorer_service_pb2 as pb
from promptlooper.v1.scorer_service_pb2_grpc import ScorerServiceStub
from promptlooper.wire.limits import chunks
from promptlooper.wire.scoring import check_to_pb, item_to_pb, scorer_from_pb, value_from_pb


@asynccontextmanager
async def connected(address: str, *, security: ChannelSecurity | None = None) -> AsyncIterator[ScorerClient]:
    async with open_channel(address, pb.DESCRIPTOR.services_by_name["ScorerService"], security=security) as channel:
        yield ScorerClient(channel, address)


class ScorerClient(ScoringService):
    """One RPC per call; lists that are too long for a message take several. A Scorer that is slow or leaving raises
    ServiceUnavailable, as one that is gone does."""

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        self._stub = ScorerServiceStub(channel)
        self._address = address

    async def score(self, items: Sequence[ScoreItem]) -> list[list[ScoreValue]]:
        scored: list[list[ScoreValue]] = []
        for some in chunks([item_to_pb(item) for item in items]):
            with away(self._address, "scorer"):
                response = await self._stub.Score(pb.ScoreRequest(items=some))
            scored += [[value_from_pb(value) for value in item.values] for item in response.items]
        asked = [len(item.calls) for item in items]
        if [len(values) for values in scored] != asked:
            raise self._unavailable("did not answer every scorer of every item")
        return scored

    async def check(self, scorers: Sequence[ScorerCheck]) -> list[list[str]]:
        problems: list[list[str]] = []
        for some in chunks([check_to_pb(scorer) for scorer in scorers]):
            with away(self._address, "scorer"):
                response = await self._stub.CheckScorers(pb.CheckScorersRequest(scorers=some))
            problems += [list(found.messages) for found in response.problems]
        if len(problems) != len(scorers):
            raise self._unavailable("did not check every scorer")
        return problems

    async def list_scorers(self) -> list[ScorerInfo]:
        with away(self._address, "scorer"):
            response = await self._stub.ListScorers(pb.ListScorersRequest())
        return [scorer_from_pb(scorer) for scorer in response.scorers]

    def _unavailable(self, what: str) -> ServiceUnavailable:
        return ServiceUnavailable(
            f"the Scorer at {self._address} {what}: is it of this version?", address=self._address
        )
