"""The Scorer's RPCs, client to core."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from promptlooper.clients.scorer import connected
from promptlooper.errors import (
    DeadlineExceeded,
    DomainError,
    Draining,
    InvalidArgument,
    ServiceUnavailable,
    TooLarge,
)
from promptlooper.experiment import ScorerSpec
from promptlooper.rpc.client import domain_errors
from promptlooper.runner.render import Renderer
from promptlooper.runner.scores import Scores
from promptlooper.scoring import ScoreItem, ScorerCall, ScorerCheck, ScorerInfo, ScoreValue
from promptlooper.v1 import scorer_service_pb2 as pb
from promptlooper.v1.scorer_service_pb2_grpc import ScorerServiceStub


async def test_every_call_of_every_item_is_scored(scorer: Any) -> None:
    items = [
        ScoreItem("abc", (ScorerCall("length", ["a", 1, None], {"k": 0}, ""), ScorerCall("bad")), 12, 0),
        ScoreItem("", ()),
        ScoreItem("a", (ScorerCall("length", False),), 0, None),
    ]
    assert await scorer.client.score(items) == [
        [ScoreValue(1.0, "by length", None, {"length": 3}), ScoreValue(None, error="it broke")],
        [],
        [ScoreValue(0.0, "by length", None, {"length": 1})],
    ]
    assert scorer.core.scored == [items]


async def test_long_lists_take_several_messages(scorer: Any) -> None:
    items = [ScoreItem("abc", (ScorerCall("length"),)) for _ in range(1_200)]
    assert len(await scorer.client.score(items)) == 1_200
    checks = [ScorerCheck("length")] * 1_200
    assert await scorer.client.check(checks) == [[]] * 1_200
    assert [len(some) for some in scorer.core.scored] == [1000, 200]
    assert [len(some) for some in scorer.core.checked] == [1000, 200]


async def test_large_outputs_take_several_messages(scorer: Any) -> None:
    items = [ScoreItem("x" * 2_000_000, (ScorerCall("length"),)) for _ in range(3)]
    assert len(await scorer.client.score(items)) == 3
    assert [len(some) for some in scorer.core.scored] == [1, 1, 1]


async def test_run_that_is_too_large_for_a_message_leaves_the_others_their_scores(scorer: Any) -> None:
    scores = Scores(scorer.client, Renderer())
    specs = [ScorerSpec("long", "length", value) for value in ("a", "x" * 5_000_000, "b", "c")]
    found = await asyncio.gather(*(scores.of((spec,), (), {}) for spec in specs))
    await scores.aclose()
    assert [value is None for _, value, _ in found] == [False, True, False, False]
    assert "not scored: a message to or from" in found[1][0][0].error


async def test_scorers_are_checked_in_order(scorer: Any) -> None:
    checks = [ScorerCheck("length", 0, {"a": []}, True), ScorerCheck("bad")]
    assert await scorer.client.check(checks) == [[], ["no scorer 'bad'", "nor settings"]]
    assert scorer.core.checked == [checks]


async def test_scorers_are_listed(scorer: Any) -> None:
    assert await scorer.client.list_scorers() == [ScorerInfo("length", "how long it is", {}, {"type": "object"}, False)]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (InvalidArgument("no", field="items"), InvalidArgument),
        (TooLarge("much"), TooLarge),
        (Draining("leaving"), ServiceUnavailable),
        (DeadlineExceeded("slow"), ServiceUnavailable),
    ],
    ids=lambda value: value.reason if isinstance(value, DomainError) else "",
)
async def test_failure_is_raised_again(scorer: Any, error: Any, raised: type) -> None:
    scorer.core.error = error
    with pytest.raises(raised) as caught:
        await scorer.client.score([ScoreItem("x", ())])
    assert caught.value.message == error.message
    assert raised is ServiceUnavailable or caught.value.metadata == error.metadata


async def test_scorer_that_is_not_there_is_named(unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    async with connected(address) as client:
        with pytest.raises(ServiceUnavailable, match=f"no scorer answers at {address}"):
            await client.list_scorers()


async def test_wrong_number_of_answers_is_unavailable(scorer: Any) -> None:
    async def short(items: Any) -> list[list[Any]]:
        return [[]]

    scorer.core.score = scorer.core.check = short
    with pytest.raises(ServiceUnavailable, match="did not answer every scorer"):
        await scorer.client.score([ScoreItem("x", (ScorerCall("length"),))])
    with pytest.raises(ServiceUnavailable, match="did not check every scorer"):
        await scorer.client.check([ScorerCheck("length")] * 2)


@pytest.mark.parametrize(
    ("method", "request_message", "field"),
    [
        ("Score", pb.ScoreRequest(items=[pb.ScoreItem()] * 1001), "items"),
        ("CheckScorers", pb.CheckScorersRequest(scorers=[pb.ScorerCheck()] * 1001), "scorers"),
        (
            "Score",
            pb.ScoreRequest(items=[pb.ScoreItem(), pb.ScoreItem(calls=[pb.ScorerCall(value_json="{")])]),
            "items[1].calls[0].value_json",
        ),
        (
            "CheckScorers",
            pb.CheckScorersRequest(scorers=[pb.ScorerCheck(settings_json="3")]),
            "scorers[0].settings_json",
        ),
    ],
    ids=["items", "scorers", "value", "settings"],
)
async def test_request_that_is_wrong_is_refused_by_name_of_its_field(
    scorer: Any, method: str, request_message: Any, field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught, domain_errors(scorer.address):
        await getattr(ScorerServiceStub(scorer.channel), method)(request_message)
    assert caught.value.metadata == {"field": field}
