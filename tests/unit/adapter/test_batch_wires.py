"""Batches in Anthropic's and Gemini's forms, over real HTTP, beside OpenAI's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from promptlooper.adapter.gateway import Gateway
from promptlooper.batches import BatchItem, BatchState
from promptlooper.completion import CompletionRequest, Message
from promptlooper.errors import CompletionFailed, ProviderCredentials, ProviderRateLimited, ProviderRejected
from promptlooper.testing.wires import Asked, Reply, Said
from promptlooper.testing.wires.anthropic_batches import AnthropicBatchServer
from promptlooper.testing.wires.batches import BatchServer
from promptlooper.testing.wires.gemini_batches import GeminiBatchServer
from promptlooper.testing.wires.openai_batches import OpenAIBatchServer

SERVERS: dict[str, Any] = {
    "openai": OpenAIBatchServer,
    "anthropic": AnthropicBatchServer,
    "gemini": GeminiBatchServer,
}
TELLS_APART = ("openai", "gemini")  # batches by their label
SAYS_UNANSWERED = ("openai", "anthropic")  # which items it did not come to


def question_in(asked: Asked) -> str:
    if "contents" in asked.body:
        return str(asked.body["contents"][-1]["parts"][0]["text"])
    return str(asked.body["messages"][-1]["content"])


def echo(asked: Asked) -> Said:
    return Said(f"about {question_in(asked)}", tokens_in=1000, tokens_out=100)


def items(type_: str, *questions: str, **params: Any) -> list[BatchItem]:
    return [
        BatchItem(f"q-{n}", CompletionRequest(f"{type_}/m", (Message("user", question),), params))
        for n, question in enumerate(questions)
    ]


@dataclass
class Lab:
    type: str
    server: BatchServer
    gateway: Gateway

    async def submit(self, *questions: str, label: str = "b-1", again: bool = False, **params: Any) -> str:
        asked = items(self.type, *questions, **params)
        submitted = await self.gateway.submit_batch(f"{self.type}/m", label, asked, again=again)
        assert not submitted.refused
        return submitted.batch

    async def results(self, batch: str, read: dict[str, Any] | None = None) -> dict[str, Any]:
        """`read` has what was read before it failed."""
        found = {} if read is None else read
        async for each in self.gateway.batch_results(batch):
            found[each.item_id] = each.completion or each.error
        return found


@pytest.fixture(params=SERVERS)
async def lab(request, gateways, key) -> AsyncIterator[Lab]:
    kind = request.param
    quirks = ", quirks: openai" if kind == "openai" else ""
    async with SERVERS[kind](echo, hold=True) as server:
        entry = f"{{name: {kind}, type: {kind}, base_url: '{server.base_url}', api_key_env: THE_KEY{quirks}}}"
        yield Lab(kind, server, gateways(f"providers: [{entry}]", THE_KEY=key))


async def test_a_batch_is_submitted_polled_and_read(lab):
    batch = await lab.submit("one", "two", "three", max_tokens=50)
    assert (await lab.gateway.batch_status(batch)).state is BatchState.RUNNING
    lab.server.finish()
    status = await lab.gateway.batch_status(batch)
    assert (status.state, status.total, status.answered, status.failed) == (BatchState.ENDED, 3, 3, 0)
    assert status.expires_at > datetime(2023, 11, 15, tzinfo=UTC)
    found = await lab.results(batch)
    assert {name: answer.output for name, answer in found.items()} == {
        "q-0": "about one",
        "q-1": "about two",
        "q-2": "about three",
    }
    assert (found["q-0"].tokens_in, found["q-0"].tokens_out, found["q-0"].model) == (1000, 100, "m")
    assert not lab.server.refused


async def test_items_that_failed_say_why(lab):
    failing = {"two": Reply(status=400, message="no such thing"), "three": Reply(status=429)}
    lab.server.answer = lambda asked: failing.get(question_in(asked)) or echo(asked)
    batch = await lab.submit("one", "two", "three")
    lab.server.finish()
    found = await lab.results(batch)
    assert [type(found["q-1"]), type(found["q-2"])] == [ProviderRejected, ProviderRateLimited]
    assert "no such thing" in str(found["q-1"])
    assert found["q-1"].attempts == 1
    status = await lab.gateway.batch_status(batch)
    assert (status.answered, status.failed) == (1, 2)


@pytest.mark.parametrize("end", ["expired", "cancelled"])
async def test_what_was_not_answered_is_said_or_left_out(lab, end):
    batch = await lab.submit("one", "two", "three")
    lab.server.finish(end=end, answered=1)
    found = await lab.results(batch)
    if lab.type in SAYS_UNANSWERED:
        assert [getattr(each, "reason", "ok") for each in found.values()] == ["ok", *[f"BATCH_{end.upper()}"] * 2]
        assert found["q-1"].attempts == 0
    else:
        assert not found


async def test_a_batch_is_cancelled_once(lab):
    batch = await lab.submit("one")
    await lab.gateway.cancel_batch(batch)
    assert lab.server.batches[0].state == "cancelling"
    await lab.gateway.cancel_batch(batch)
    lab.server.finish(end="cancelled")
    await lab.gateway.cancel_batch(batch)
    assert (await lab.gateway.batch_status(batch)).state is BatchState.ENDED


async def test_again_finds_the_batch_where_it_has_a_label(lab):
    first = await lab.submit("one")
    for n in range(120):
        lab.server.take(f"other-{n}", {})
    again = await lab.submit("one", again=True)
    assert (again == first) is (lab.type in TELLS_APART)


async def test_a_batch_that_is_forgotten_is_unknown(lab):
    batch = await lab.submit("one")
    lab.server.forget()
    assert (await lab.gateway.batch_status(batch)).state is BatchState.UNKNOWN


GOOD = b'{"custom_id":"q-0","key":"q-0","result":{"type":"expired"},"error":{"code":1}}\n'
CUTS = [
    (GOOD + b'{"cust', "end", "PROVIDER_MALFORMED"),
    (GOOD + b'{"cust', "drop", "PROVIDER_UNAVAILABLE"),
    (GOOD + b"[]\n", "end", "PROVIDER_MALFORMED"),
    (GOOD + b'{"result":{}}\n', "end", "PROVIDER_MALFORMED"),
    (GOOD + b"x" * (9 * 2**20), "end", "PROVIDER_REJECTED"),
]


@pytest.mark.parametrize(("body", "then", "reason"), CUTS)
async def test_results_that_break_off_are_not_taken_for_all(lab, body, then, reason):
    batch = await lab.submit("one", "two")
    lab.server.finish()
    before = {"openai": 2, "anthropic": 1, "gemini": 2}[lab.type]  # calls, before that of the file
    lab.server.failing = [*[None] * before, Reply(body=body, then=then)]
    read: dict[str, Any] = {}
    with pytest.raises(CompletionFailed) as raised:
        await lab.results(batch, read)
    assert (list(read), raised.value.reason) == (["q-0"], reason)
    assert len(await lab.results(batch)) == 2


async def test_a_status_that_nobody_knows_is_not_guessed(lab):
    batch = await lab.submit("one")
    lab.server.failing = [Reply(body=b'{"status":"new","processing_status":"new","metadata":{"state":"NEW"}}')] * 3
    with pytest.raises(CompletionFailed, match=r"'(new|NEW)' of the batch is not known"):
        await lab.gateway.batch_status(batch)


async def test_a_refused_key_is_said_and_not_sent_again(lab, key):
    lab.server.failing = [Reply(status=401, message=f"bad key {key}")] * 2
    for _ in range(2):
        with pytest.raises(ProviderCredentials) as raised:
            await lab.submit("one")
        assert key not in str(raised.value)
    assert len(lab.server.failing) == 1
