"""Redis killed, frozen, full or talking nonsense: the same results, a bounded wait, and a breaker that says so.

No wall-clock times: what a call may wait is the time-out, so the waits are counted.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cache_lab import asking_runner, cache_service, ran
from redis.asyncio import Redis
from runner_lab import experiment, stage

from promptlooper.backing import RedisServer
from promptlooper.cache.settings import CacheSettings
from promptlooper.cache.store.redis import RedisStore
from promptlooper.clients.cache import CacheClient
from promptlooper.experiment import ExperimentSpec, ModelEntry, Pipeline
from promptlooper.redis_access import FAILURES
from promptlooper.run import Run
from promptlooper.testing.clock import ManualClock
from promptlooper.testing.eventually import eventually
from promptlooper.testing.provider import FakeProvider, ProviderRequest
from promptlooper.testing.proxy import FaultProxy, fault_proxy
from promptlooper.testing.servers import redis_server

ROWS = 12
TIMEOUT = CacheSettings.model_fields["redis_timeout"].default
PATIENT = 10.0  # seconds, where Redis works and only the machine may be slow


def questions(first: int = 0) -> ExperimentSpec:
    """One after the other, so that waits add up where there are any."""
    pipeline = Pipeline("p", (stage("{{ input.n }}?"),), (ModelEntry("m", "openai/m"),))
    return experiment(
        pipelines=(pipeline,), rows=[{"n": n} for n in range(first, first + ROWS)], limits={"max_concurrency": 1}
    )


def same(runs: Sequence[Run]) -> list[Any]:
    """What must not depend on the cache."""
    return [(run.run_index, run.state, run.output, run.tokens_in, run.tokens_out, run.error) for run in runs]


@dataclass
class Ground:
    server: RedisServer
    proxy: FaultProxy
    provider: FakeProvider
    clock: ManualClock  # of the hurried Cache's breaker
    patient: CacheClient
    hurried: CacheClient  # waits for Redis as long as it does where nothing is said
    store: RedisStore  # of the hurried one

    @property
    def calls(self) -> int:
        return len(self.provider.requests)

    @property
    def pid(self) -> int:
        assert self.server.process is not None
        return self.server.process.pid


@pytest.fixture
async def ground() -> AsyncIterator[Ground]:
    clock = ManualClock()
    async with AsyncExitStack() as stack:
        server = stack.enter_context(redis_server())
        proxy = await stack.enter_async_context(fault_proxy(server.port))
        provider = await stack.enter_async_context(FakeProvider(answered))
        url = f"redis://{proxy.address}/0"
        patient, _ = await stack.enter_async_context(cache_service(url, timeout=PATIENT))
        hurried, store = await stack.enter_async_context(cache_service(url, timeout=TIMEOUT, clock=clock))
        yield Ground(server, proxy, provider, clock, patient, hurried, store)


def answered(request: ProviderRequest) -> str:
    return f"so it is, {request.question}"


@asynccontextmanager
async def killed(ground: Ground) -> AsyncIterator[None]:
    ground.server.kill()
    yield
    ground.server.start()


@asynccontextmanager
async def frozen(ground: Ground) -> AsyncIterator[None]:
    os.kill(ground.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(ground.pid, signal.SIGCONT)


@asynccontextmanager
async def garbled(ground: Ground) -> AsyncIterator[None]:
    ground.proxy.garble = lambda said: bytes(byte ^ 0x5A for byte in said) + b"\r\n"
    yield
    ground.proxy.garble = None


@pytest.mark.parametrize("fault", [killed, frozen, garbled], ids=lambda fault: fault.__name__)
async def test_without_redis_results_are_the_same_few_calls_wait_and_stats_say_why(
    ground: Ground, tmp_path: Path, fault: Callable[[Ground], Any]
) -> None:
    async with asking_runner(tmp_path, ground.provider, ground.patient) as runner:
        healthy = await ran(runner, questions())
        assert ground.calls == ROWS
        assert [run.cached for run in await ran(runner, questions())] == [True] * ROWS
    async with asking_runner(tmp_path, ground.provider, ground.hurried) as runner:
        assert (await ground.hurried.stats()).breaker == "closed"
        before = ground.store.failures  # of a slow machine
        async with fault(ground):
            assert same(await ran(runner, questions())) == same(healthy)
            assert ground.calls == 2 * ROWS
            # Each of these waited for the time-out at most, once; one more may have been under way with the third.
            assert 0 < ground.store.failures - before <= FAILURES + 1
            said = await ground.hurried.stats()
            assert (said.breaker, said.entries) == ("open", None)
            assert said.errors > ROWS
            ground.clock.advance(1.0)
            assert (await ground.hurried.stats()).breaker == "open"  # it was tried, and failed
            assert ground.store.failures - before <= FAILURES + 2
    ground.clock.advance(1.0)
    await eventually(closes(ground))
    async with asking_runner(tmp_path, ground.provider, ground.patient) as runner:
        lost = ROWS if fault is killed else 0  # it kept nothing
        assert same(await ran(runner, questions())) == same(healthy)
        assert ground.calls == 2 * ROWS + lost
        assert [run.cached for run in await ran(runner, questions())] == [True] * ROWS


def closes(ground: Ground) -> Callable[[], Awaitable[bool]]:
    async def tried() -> bool:
        ground.clock.advance(1.0)
        return (await ground.hurried.stats()).breaker == "closed"

    return tried


async def test_a_full_redis_serves_hits_and_keeps_nothing_new(ground: Ground, tmp_path: Path) -> None:
    async with asking_runner(tmp_path, ground.provider, ground.patient) as runner:
        healthy = await ran(runner, questions())
        other = [f"so it is, {n}?" for n in range(ROWS, 2 * ROWS)]
        async with Redis.from_url(ground.server.url) as client:
            await client.config_set("maxmemory-policy", "noeviction")
            await client.config_set("maxmemory", "1mb")
            assert same(await ran(runner, questions())) == same(healthy)
            assert ground.calls == ROWS
            for times in (1, 2):
                assert [run.output for run in await ran(runner, questions(ROWS))] == other
                assert ground.calls == ROWS + times * ROWS
            said = await ground.patient.stats()
            assert (said.breaker, said.entries) == ("closed", ROWS)
            assert said.errors >= 2 * ROWS
            await client.config_set("maxmemory", "0")
        await ran(runner, questions(ROWS))
        assert [run.cached for run in await ran(runner, questions(ROWS))] == [True] * ROWS
        assert ground.calls == 4 * ROWS
