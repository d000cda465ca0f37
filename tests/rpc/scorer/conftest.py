"""A Scorer over gRPC with a scripted core."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

import grpc
import pytest

from promptlooper.clients.scorer import ScorerClient
from promptlooper.rpc.client import open_channel
from promptlooper.rpc.server import serving
from promptlooper.scorer.servicer import SERVICE_NAME, register
from promptlooper.scoring import ScoreItem, ScorerCheck, ScorerInfo, ScoreValue, ScoringService


class LengthScoring(ScoringService):
    """Scores by length, and fails on scorers of type `bad`."""

    def __init__(self) -> None:
        self.scored: list[list[ScoreItem]] = []
        self.checked: list[list[ScorerCheck]] = []
        self.error: Exception | None = None

    async def score(self, items: Sequence[ScoreItem]) -> list[list[ScoreValue]]:
        self.scored.append(list(items))
        if self.error is not None:
            raise self.error
        return [
            [
                ScoreValue(None, error="it broke")
                if call.type == "bad"
                else ScoreValue(float(len(item.output) > 2), "by length", None, {"length": len(item.output)})
                for call in item.calls
            ]
            for item in items
        ]

    async def check(self, scorers: Sequence[ScorerCheck]) -> list[list[str]]:
        self.checked.append(list(scorers))
        return [[f"no scorer {one.type!r}", "nor settings"] if one.type == "bad" else [] for one in scorers]

    async def list_scorers(self) -> list[ScorerInfo]:
        return [ScorerInfo("length", "how long it is", {}, {"type": "object"}, False)]


@dataclass
class ScorerOnWire:
    core: LengthScoring
    client: ScorerClient
    channel: grpc.aio.Channel
    address: str


@pytest.fixture
async def scorer() -> AsyncIterator[ScorerOnWire]:
    core = LengthScoring()
    services = {SERVICE_NAME: partial(register, core=core)}
    async with serving("127.0.0.1:0", services, health_listen="127.0.0.1:0") as server:
        address = f"127.0.0.1:{server.port}"
        async with open_channel(address) as channel:
            yield ScorerOnWire(core, ScorerClient(channel, address), channel, address)
