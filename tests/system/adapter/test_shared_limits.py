"""Adapters that share limits through a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from redis.asyncio import Redis

from promptlooper.adapter.app import gateway_from
from promptlooper.adapter.gateway import Gateway
from promptlooper.adapter.limits.ledger import LEASE
from promptlooper.adapter.limits.ledger_text import ledger_of
from promptlooper.adapter.limits.limiter import Lane
from promptlooper.adapter.limits.shared_ledger import Fleet
from promptlooper.backing import RedisServer
from promptlooper.clock import SystemClock
from promptlooper.completion import CompletionRequest, Message
from promptlooper.testing.eventually import eventually
from promptlooper.testing.provider import FakeProvider, Reply
from promptlooper.testing.proxy import fault_proxy
from promptlooper.testing.servers import redis_cluster, redis_server

MODEL = "fake/m"


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def providers(folder: Path, fake: FakeProvider, limits: str) -> Path:
    path = folder / "providers.yaml"
    path.write_text(f"providers: [{{name: fake, type: openai, base_url: '{fake.base_url}', limits: {limits}}}]")
    return path


@asynccontextmanager
async def adapter(path: Path, url: str, name: str, timeout: float = 0.25) -> AsyncIterator[tuple[Gateway, Fleet]]:
    async with (
        Fleet(url, SystemClock(), name, timeout=timeout) as fleet,
        gateway_from(path, env={}, keeper=fleet.keeper) as gateway,
    ):
        yield gateway, fleet


def ask(gateway: Gateway, question: str = "hi") -> asyncio.Task[object]:
    request = CompletionRequest(MODEL, (Message("user", question),), {}, 60.0, experiment_id="e")
    return asyncio.create_task(gateway.complete(request))


def adapters_seen(gateway: Gateway) -> int:
    return max((state.adapters for state in gateway.limiter.states().values()), default=0)


async def test_two_adapters_keep_to_one_limit_and_the_one_that_leaves_gives_its_part_back(
    tmp_path: Path, redis: RedisServer
) -> None:
    release = asyncio.Event()
    async with FakeProvider(Reply(until=release)) as fake, AsyncExitStack() as stack:
        path = providers(tmp_path, fake, "{max_concurrency: 6}")
        one, _ = await stack.enter_async_context(adapter(path, redis.url, "one"))
        async with adapter(path, redis.url, "other") as (other, _):
            calls = [ask(one, str(n)) for n in range(4)] + [ask(other, str(n)) for n in range(4, 8)]
            await fake.eventually(lambda f: f.open == 6)
            await eventually(lambda: adapters_seen(one) == adapters_seen(other) == 2)
            release.set()
            await asyncio.gather(*calls)
            assert fake.most_open == 6
        release.clear()
        calls = [ask(one, str(n)) for n in range(6)]
        await fake.eventually(lambda f: f.open == 6)
        release.set()
        await asyncio.gather(*calls)
        (info,) = [model for model in await one.list_models() if model.model == MODEL]
        assert (info.limits[0].max_concurrency, info.limits[0].adapters) == (6, 1)


async def test_what_redis_holds_is_one_key_that_expires_and_garbage_in_it_is_replaced(
    tmp_path: Path, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeProvider() as fake, Redis.from_url(redis.url) as client:
        path = providers(tmp_path, fake, "{requests_per_minute: 600, tokens_per_minute: 100000}")
        async with adapter(path, redis.url, "one") as (gateway, _):
            await ask(gateway)
            (key,) = await client.keys("*")
            assert key.startswith(b"promptlooper:limits:1:{")
            assert key.endswith(b"}")
            assert 0 < await client.ttl(key) <= 3600
        await client.hset(key, mapping={"version": b"\xff", "ledger": b"garbage"})
        async with adapter(path, redis.url, "other") as (gateway, _):
            await ask(gateway)
        assert "not what an Adapter writes" in caplog.text
        assert (await client.hget(key, "ledger")).startswith(b"[1,")


async def test_limits_of_the_local_model_are_each_adapters_own(tmp_path: Path, redis: RedisServer) -> None:
    async with FakeProvider() as fake, adapter(providers(tmp_path, fake, "{}"), redis.url, "one") as (gateway, _):
        request = CompletionRequest("local/m", (Message("user", "hi"),), {}, experiment_id="e")
        for _ in range(2):
            await gateway.limiter.permit(Lane("local", "m"), request)
        assert gateway.limiter.states()[Lane("local", "m")].waits_for == "concurrency"
        async with Redis.from_url(redis.url) as client:
            assert await client.keys() == []


async def test_ledgers_of_lanes_lie_in_a_cluster_where_their_keys_are() -> None:
    with redis_cluster() as nodes:
        async with Fleet(nodes[0].url, SystemClock(), "one", timeout=5.0, cluster=True) as fleet:
            assert await fleet.swap("promptlooper:limits:1:{0}", b"", b"ledger") == (b"", b"")  # asks for the time
            for n in range(20):
                key = f"promptlooper:limits:1:{{{n}}}"
                version, theirs = await fleet.swap(key, b"", b"ledger")
                assert theirs is None
                assert await fleet.swap(key, b"other", b"mine") == (version, b"ledger")


async def test_while_redis_is_frozen_questions_are_answered_within_the_own_part(
    tmp_path: Path, redis: RedisServer
) -> None:
    release = asyncio.Event()
    async with FakeProvider() as fake, fault_proxy(redis.port) as proxy:
        url = f"redis://{proxy.address}/0"
        path = providers(tmp_path, fake, "{max_concurrency: 6}")
        async with adapter(path, url, "one", 0.05) as (one, fleet), adapter(path, url, "other", 0.05) as (other, _):
            await asyncio.gather(ask(one), ask(other))
            await eventually(lambda: adapters_seen(one) == adapters_seen(other) == 2)
            proxy.hold()
            await eventually(lambda: not fleet.is_up())
            fake.answer = Reply(until=release)
            calls = [ask(one, str(n)) for n in range(5)]
            await fake.eventually(lambda f: f.open == 3)
            release.set()
            await asyncio.gather(*calls)
            assert fake.most_open == 3


class Skewed(SystemClock):
    """Of a machine whose clock is wrong."""

    def now(self) -> datetime:
        return super().now() + timedelta(minutes=2)


async def test_nothing_is_written_with_the_time_of_an_adapters_own_clock(tmp_path: Path, redis: RedisServer) -> None:
    async with FakeProvider() as fake, Redis.from_url(redis.url) as client:
        path = providers(tmp_path, fake, "{requests_per_minute: 600}")
        async with Fleet(redis.url, Skewed(), "one") as fleet, gateway_from(path, env={}, keeper=fleet.keeper) as one:
            await ask(one)
            (key,) = await client.keys("*")
            ledger = ledger_of(await client.hget(key, "ledger"))
            seconds, _ = await client.time()
    assert ledger.free_at[0] < seconds + 1
    assert ledger.members["one"].lease_until < seconds + LEASE + 1


@pytest.mark.parametrize(
    "said", [b"+OK\r\n", b":1\r\n", b"*0\r\n", b"*2\r\n$1\r\nx\r\n$1\r\ny\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"]
)
async def test_what_is_no_redis_counts_as_away(tmp_path: Path, said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(said)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, FakeProvider() as fake:
        path = providers(tmp_path, fake, "{max_concurrency: 6}")
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        async with adapter(path, url, "one") as (gateway, fleet):
            now = fleet.now()
            await ask(gateway)
            await eventually(lambda: not fleet.is_up())
            assert fleet.now() - now < 60
