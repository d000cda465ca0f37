"""The Scorer's RPCs: convert in, ask the core, convert out."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from promptlooper.scoring import ScoringService
from promptlooper.v1 import scorer_service_pb2 as pb
from promptlooper.v1.scorer_service_pb2_grpc import ScorerServiceServicer, add_ScorerServiceServicer_to_server
from promptlooper.wire.limits import refuse_too_many
from promptlooper.wire.scoring import check_from_pb, item_from_pb, scorer_to_pb, value_to_pb

SERVICE = pb.DESCRIPTOR.services_by_name["ScorerService"]
SERVICE_NAME = SERVICE.full_name

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


def register(server: grpc.aio.Server, core: ScoringService) -> None:
    add_ScorerServiceServicer_to_server(ScorerServicer(core), server)


class ScorerServicer(ScorerServiceServicer):
    def __init__(self, core: ScoringService) -> None:
        self._core = core

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        refuse_too_many(request.items, "items")
        scored = await self._core.score([item_from_pb(item, f"items[{i}]") for i, item in enumerate(request.items)])
        return pb.ScoreResponse(items=[pb.ItemScores(values=[value_to_pb(v) for v in values]) for values in scored])

    async def CheckScorers(self, request: pb.CheckScorersRequest, context: Context) -> pb.CheckScorersResponse:
        refuse_too_many(request.scorers, "scorers")
        checks = [check_from_pb(check, f"scorers[{i}]") for i, check in enumerate(request.scorers)]
        problems = await self._core.check(checks)
        return pb.CheckScorersResponse(problems=[pb.ScorerProblems(messages=messages) for messages in problems])

    async def ListScorers(self, request: pb.ListScorersRequest, context: Context) -> pb.ListScorersResponse:
        return pb.ListScorersResponse(scorers=[scorer_to_pb(scorer) for scorer in await self._core.list_scorers()])
