"""Answers piece by piece on CompleteMany's stream, client to core."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from promptlooper.completion import Completion
from promptlooper.errors import ProviderRateLimited


@pytest.fixture
def core(adapter: Any, talking: Any) -> Any:
    """Of the adapter: says two pieces together."""
    adapter.servicer._core = core = talking("a", "bä")
    return core


async def test_pieces_travel_before_the_answer_is_there_joined_where_they_are_ready_together(
    adapter: Any, ask: Any, core: Any
) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.create_task(adapter.client.complete(ask(timeout=3.0), heard.put_nowait))
    assert await heard.get() == "abä"
    assert not task.done()
    core.go.set()
    assert await task == Completion("abä", "m", "stop", 1, 2, latency_ms=5, ttft_ms=1)
    assert heard.empty()
    assert adapter.servicer.streams == 1


async def test_pieces_of_many_questions_reach_each_its_own(adapter: Any, ask: Any) -> None:
    async def complete(request: Any, on_delta: Any) -> Completion:
        text = request.messages[-1].content
        for piece in text:
            on_delta(piece)
            await asyncio.sleep(0)
        return Completion(text, "m", "stop")

    adapter.gateway.complete = complete
    heard: dict[str, list[str]] = {f"question {n}": [] for n in range(300)}
    answers = await asyncio.gather(*(adapter.client.complete(ask(text), each.append) for text, each in heard.items()))
    assert {text: "".join(pieces) for text, pieces in heard.items()} == {text: text for text in heard}
    assert [answer.output for answer in answers] == list(heard)


async def test_errors_come_with_their_facts_also_after_pieces(adapter: Any, ask: Any, core: Any) -> None:
    core.fails = ProviderRateLimited("wait", attempts=2, retry_after=7.0, provider="p")
    core.go.set()
    heard: list[str] = []
    with pytest.raises(ProviderRateLimited, match="wait") as raised:
        await adapter.client.complete(ask(), heard.append)
    assert (heard, raised.value.attempts, raised.value.retry_after) == (["abä"], 2, 7.0)


async def test_a_caller_that_goes_stops_its_call_and_leaves_the_stream(adapter: Any, ask: Any, core: Any) -> None:
    first = asyncio.Event()
    task = asyncio.create_task(adapter.client.complete(ask(), lambda piece: first.set()))
    await first.wait()
    task.cancel()
    async with asyncio.timeout(10):
        await core.stopped.wait()
    core.go.set()
    assert (await adapter.client.complete(ask(), lambda piece: None)).output == "abä"
    assert adapter.servicer.streams == 1


async def test_a_listener_that_fails_fails_its_question_alone(adapter: Any, ask: Any, core: Any) -> None:
    def fail(piece: str) -> None:
        raise LookupError("deaf")

    other = asyncio.create_task(adapter.client.complete(ask(), lambda piece: None))
    with pytest.raises(LookupError, match="deaf"):
        await adapter.client.complete(ask(), fail)
    async with asyncio.timeout(10):
        await core.stopped.wait()
    core.go.set()
    assert (await other).output == "abä"


async def test_nobody_is_told_who_does_not_listen(adapter: Any, ask: Any) -> None:
    """A provider is asked for a stream where somebody listens, which costs CPU for each piece."""
    asked: list[Any] = []

    async def complete(request: Any, on_delta: Any = None) -> Completion:
        asked.append(on_delta)
        return Completion("fine", "m", "stop")

    adapter.gateway.complete = complete
    await adapter.client.complete(ask())
    assert asked == [None]


@pytest.mark.parametrize("output", ["all of it", ""])
async def test_an_adapter_that_ignores_the_wish_is_heard_at_the_end(adapter: Any, ask: Any, output: str) -> None:
    async def answer(request: Any) -> Completion:
        return Completion(output, "m", "stop")

    adapter.gateway.answer = answer
    adapter.servicer.ignores_deltas = True
    heard: list[str] = []
    assert (await adapter.client.complete(ask(), heard.append)).output == output
    assert heard == [output] * bool(output)
