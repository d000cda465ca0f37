"""Questions over a list of Adapters: spread, and moved when one goes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from promptlooper.adapter.servicer import SERVICE_NAME, AdapterServicer
from promptlooper.backing import free_port
from promptlooper.clients.adapter import AdapterClient, connected
from promptlooper.completion import Completion, CompletionRequest, Message
from promptlooper.errors import ServiceUnavailable
from promptlooper.rpc.server import serving
from promptlooper.testing.eventually import eventually


class Replica:
    """An Adapter with a scripted core that can leave and come back on its port."""

    def __init__(self, gateway: Any) -> None:
        self.gateway = gateway
        self.port = free_port()
        self._stack = AsyncExitStack()

    async def come(self, grace: float = 20.0) -> None:
        servicer = AdapterServicer(self.gateway)
        await self._stack.enter_async_context(
            serving(
                f"127.0.0.1:{self.port}",
                {SERVICE_NAME: servicer.register},
                health_listen="127.0.0.1:0",
                grace=grace,
                on_drain=servicer.drain,
            )
        )

    async def go(self) -> None:
        await self._stack.aclose()

    def asked(self) -> Counter[str]:
        return Counter(request.messages[-1].content for request in self.gateway.asked)


@dataclass
class Pair:
    one: Replica
    other: Replica
    client: AdapterClient
    released: asyncio.Event

    @property
    def asked(self) -> Counter[str]:
        return self.one.asked() + self.other.asked()

    def forget(self) -> None:
        """What was asked so far."""
        self.one.gateway.asked.clear()
        self.other.gateway.asked.clear()

    def hold(self, *replicas: Replica) -> None:
        """Their answers wait until `released`."""

        async def late(request: Any) -> Completion:
            await self.released.wait()
            return Completion("late", "echo", "stop")

        for replica in replicas:
            replica.gateway.answer = late


@asynccontextmanager
async def two_adapters(new_gateway: Callable[[], Any], grace: float = 20.0) -> AsyncIterator[Pair]:
    """Both connected, and nothing asked yet."""
    one, other = Replica(new_gateway()), Replica(new_gateway())
    async with AsyncExitStack() as stack:
        for replica in (one, other):
            await replica.come(grace)
            stack.push_async_callback(replica.go)
        address = f"127.0.0.1:{one.port}, 127.0.0.1:{other.port}"
        pair = Pair(one, other, await stack.enter_async_context(connected(address)), asyncio.Event())
        while not (one.gateway.asked and other.gateway.asked):
            await pair.client.complete(CompletionRequest("mock/echo", (Message("user", "hello"),), {}, 30.0))
        pair.forget()
        yield pair


def asking(client: AdapterClient, ask: Any, texts: list[str], **options: Any) -> list[asyncio.Task[Completion]]:
    return [asyncio.create_task(client.complete(ask(text, **options))) for text in texts]


def more_than(before: int, replica: Replica) -> Callable[[], bool]:
    return lambda: len(replica.gateway.asked) > before


def names(count: int) -> list[str]:
    return [f"q{n}" for n in range(count)]


async def test_questions_are_spread_evenly(new_gateway: Any, ask: Any) -> None:
    async with two_adapters(new_gateway) as pair:
        pair.hold(pair.one, pair.other)
        tasks = asking(pair.client, ask, names(100))
        await eventually(lambda: pair.asked.total() == 100)
        assert {len(pair.one.gateway.asked), len(pair.other.gateway.asked)} == {50}
        pair.released.set()
        await asyncio.gather(*tasks)


async def test_adapter_that_leaves_answers_what_it_has_and_the_other_gets_the_rest(new_gateway: Any, ask: Any) -> None:
    async with two_adapters(new_gateway) as pair:
        pair.hold(pair.one)
        tasks = asking(pair.client, ask, names(20))
        await eventually(lambda: pair.asked.total() == 20)
        going = asyncio.create_task(pair.one.go())
        answers = await asyncio.gather(*asking(pair.client, ask, [f"new{n}" for n in range(20)]))
        assert [answer.output for answer in answers] == [f"new{n}" for n in range(20)]
        pair.released.set()
        await asyncio.gather(*tasks)
        await going
        assert set(pair.asked.values()) == {1}
        assert pair.one.asked().keys().isdisjoint(f"new{n}" for n in range(20))


async def test_questions_of_an_adapter_that_died_are_asked_once_more_and_none_fails(new_gateway: Any, ask: Any) -> None:
    async with two_adapters(new_gateway, grace=0.0) as pair:
        pair.hold(pair.one)
        tasks = asking(pair.client, ask, names(20))
        await eventually(lambda: pair.asked.total() == 20)
        died = pair.one.asked()
        await pair.one.go()
        await asyncio.gather(*tasks)
        assert pair.asked - Counter(names(20)) == died


@pytest.mark.parametrize("pieces", [("a",), ()])
async def test_who_has_heard_a_part_of_an_answer_gets_no_second_one(ask: Any, talking: Any, pieces: Any) -> None:
    cores = [talking(*pieces), talking(*pieces)]
    replicas = [Replica(core) for core in cores]
    async with AsyncExitStack() as stack:
        for replica in replicas:
            await replica.come(grace=0.0)
            stack.push_async_callback(replica.go)
        client = await stack.enter_async_context(connected(",".join(f"127.0.0.1:{one.port}" for one in replicas)))
        heard: list[str] = []
        task = asyncio.create_task(client.complete(ask(), heard.append))
        await eventually(lambda: any(core.asked for core in cores) and heard == list(pieces))
        first, other = (0, 1) if cores[0].asked else (1, 0)
        cores[other].go.set()
        await replicas[first].go()
        if pieces:
            with pytest.raises(ServiceUnavailable) as raised:
                await task
            assert raised.value.sent
        else:
            await task
        assert (len(cores[other].asked), heard) == (0 if pieces else 1, list(pieces))


async def test_question_that_is_asked_again_has_only_the_time_that_is_left(new_gateway: Any, ask: Any) -> None:
    async with two_adapters(new_gateway, grace=0.0) as pair:
        pair.hold(pair.one, pair.other)
        tasks = asking(pair.client, ask, names(2), timeout=30.0)
        await eventually(lambda: pair.asked.total() == 2)
        await pair.one.go()
        await eventually(lambda: pair.asked.total() == 3)
        assert pair.other.gateway.asked[-1].timeout < 30.0
        pair.released.set()
        await asyncio.gather(*tasks)


async def test_adapter_that_is_not_there_costs_nobody_a_question(new_gateway: Any, ask: Any) -> None:
    async with two_adapters(new_gateway) as pair:
        await pair.one.go()
        answers = await asyncio.gather(*asking(pair.client, ask, names(50)))
        assert [answer.output for answer in answers] == names(50)
        assert len(pair.other.gateway.asked) == 50


async def test_adapter_that_is_back_gets_its_share_again(new_gateway: Any, ask: Any) -> None:
    async with two_adapters(new_gateway) as pair:
        await pair.client.complete(ask("before"))
        await pair.one.go()
        await pair.client.complete(ask("without"))
        before = len(pair.one.gateway.asked)
        await pair.one.come()

        while len(pair.one.gateway.asked) == before:
            await pair.client.complete(ask("again"))
        pair.hold(pair.one, pair.other)
        pair.forget()
        tasks = asking(pair.client, ask, names(40))
        await eventually(lambda: pair.asked.total() == 40)
        assert {len(pair.one.gateway.asked), len(pair.other.gateway.asked)} == {20}
        pair.released.set()
        await asyncio.gather(*tasks)


async def test_no_question_fails_and_none_is_asked_twice_while_adapters_are_restarted_in_turn(
    new_gateway: Any, ask: Any
) -> None:
    async def slow(request: Any) -> Completion:
        await asyncio.sleep(0.01)  # some questions are under way when an Adapter leaves
        return Completion("fine", "echo", "stop")

    async with two_adapters(new_gateway) as pair:
        pair.one.gateway.answer = pair.other.gateway.answer = slow
        over = asyncio.Event()

        async def client(name: int) -> int:
            count = 0
            while not over.is_set():
                await pair.client.complete(ask(f"{name}-{count}"))
                count += 1
            return count

        clients = [asyncio.create_task(client(name)) for name in range(30)]
        for replica in (pair.one, pair.other, pair.one, pair.other):
            await replica.go()
            before = len(replica.gateway.asked)
            await replica.come()
            await eventually(more_than(before, replica))
        over.set()
        counts = await asyncio.gather(*clients)
        assert pair.asked.total() == sum(counts)


async def test_when_no_adapter_is_left_the_question_fails_in_words(new_gateway: Any, ask: Any) -> None:
    async with two_adapters(new_gateway) as pair:
        await pair.one.go()
        await pair.other.go()
        with pytest.raises(ServiceUnavailable, match="no adapter answers at"):
            await pair.client.complete(ask())


async def test_client_that_is_closed_asks_no_other_adapter(new_gateway: Any, ask: Any) -> None:
    async with two_adapters(new_gateway) as pair:
        pair.hold(pair.one, pair.other)
        tasks = asking(pair.client, ask, names(4))
        await eventually(lambda: pair.asked.total() == 4)
        await pair.client.aclose()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [ServiceUnavailable] * 4
        assert pair.asked.total() == 4
        await eventually(lambda: sorted(pair.one.gateway.cancelled + pair.other.gateway.cancelled) == names(4))
