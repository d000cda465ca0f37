"""A thousand callers who go at any moment: over real HTTP, nothing stays behind."""

from __future__ import annotations

import asyncio
import random
import time

from promptlooper.completion import CompletionRequest, Message
from promptlooper.testing.provider import FakeProvider, ProviderRequest, Reply

CALLERS = 1_000
SLOTS = 50
PIECES = 50


class Caller:
    """Asks, and goes: after some turns of the loop, when the provider has the question, or after some pieces of the
    answer. Some stay."""

    def __init__(self, number: int, chance: random.Random) -> None:
        self.question = f"{number} " + "x" * 38
        self.heard = 0
        self.went_at: float | None = None
        self.task: asyncio.Task[object] | None = None
        self.goes = chance.choice(["early", "sent", "first", "amid", "never"])
        self._turns = chance.randrange(500)
        self._pieces = {"first": 1, "amid": chance.randrange(1, PIECES)}.get(self.goes)

    def hear(self, piece: str) -> None:
        self.heard += 1
        if self.heard == self._pieces:
            self.go()

    async def ask(self, gateway) -> None:
        request = CompletionRequest("few/m", (Message("user", self.question),), {}, 60.0)
        self.task = asyncio.create_task(gateway.complete(request, self.hear))
        if self.goes == "early":
            for _ in range(self._turns):
                await asyncio.sleep(0)
            self.go()
        await asyncio.wait([self.task])

    def go(self) -> None:
        assert self.task is not None
        if self.task.cancel():
            self.went_at = time.monotonic()


async def test_a_thousand_callers_go_and_no_connection_slot_or_token_is_lost(
    gateways, fake, many_files, record_property
):
    chance = random.Random(20261129)
    callers = [Caller(number, chance) for number in range(CALLERS)]

    def answer(request: ProviderRequest) -> Reply:
        caller = callers[int(request.question.split()[0])]
        if caller.goes != "sent":
            tokens_in = len(request.question) // 4  # as is estimated where the provider has not said it yet
            return Reply("a " * PIECES, tokens_in=tokens_in, pause=asyncio.Event() if caller.goes == "first" else None)
        caller.go()
        return Reply(until=asyncio.Event())

    fake.answer = answer
    gateway = gateways(
        f"providers: [{{name: few, type: openai, base_url: '{fake.base_url}', limits: {{max_concurrency: {SLOTS}}}}}]"
    )
    room = asyncio.Semaphore(2 * SLOTS)  # a longer queue is refused: others may have their turn meanwhile

    async def ask(caller: Caller) -> None:
        async with room:
            await caller.ask(gateway)

    await asyncio.gather(*(ask(caller) for caller in callers))
    await fake.eventually(lambda f: f.open == 0)

    gone = [caller for caller in callers if caller.task.cancelled()]
    stayed = [caller for caller in callers if not caller.task.cancelled()]
    assert len(gone) > CALLERS / 3
    assert fake.hung_up > CALLERS / 4
    assert all(caller.task.exception() is None for caller in stayed)
    assert gateway.counts.in_flight["few"] == 0

    heard = sum(caller.heard for caller in gone)
    asked = sum(len(caller.question) // 4 for caller in gone if caller.heard)
    assert gateway.counts.tokens_given_up == {("few", "m", "output"): heard, ("few", "m", "input"): asked}
    assert gateway.counts.tokens["few", "m", "output"] == PIECES * len(stayed)

    ended = {call.question: call.ended for call in fake.history}
    slowest = max(ended[c.question] - c.went_at for c in gone if c.went_at is not None and c.question in ended)
    record_property("slowest_close_seconds", f"{slowest:.3f}")

    await asked_at_full_rate(gateway, fake)


async def asked_at_full_rate(gateway, fake: FakeProvider) -> None:
    """Every slot is there: the provider answers nobody before it has as many requests as may be open."""
    full = asyncio.Event()
    fake.answer = Reply("fine", until=full)
    fake.most_open = 0
    request = CompletionRequest("few/m", (Message("user", "and now?"),), {}, 60.0)
    calls = [asyncio.create_task(gateway.complete(request)) for _ in range(2 * SLOTS)]
    await fake.eventually(lambda f: f.open == SLOTS)
    full.set()
    assert {call.output for call in await asyncio.gather(*calls)} == {"fine"}
    assert fake.most_open == SLOTS
