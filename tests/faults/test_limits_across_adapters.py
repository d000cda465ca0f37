"""Three real Adapters, a real Redis and a provider that takes 600 requests in any minute and 60 at once, in real time:
four minutes. One Adapter is killed, then Redis is stopped."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from promptlooper.clients.adapter import AdapterClient, connected
from promptlooper.completion import CompletionRequest, Message
from promptlooper.errors import ProviderRateLimited, ServiceUnavailable
from promptlooper.testing.provider import FakeProvider, ProviderRequest, Reply, error
from promptlooper.testing.servers import redis_server

PER_MINUTE, AT_ONCE, SECONDS, CALLERS = 600, 60, 1.0, 25


class Window:
    """Says of each request whether it is within the limits."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.refused: list[float] = []
        self._window: deque[float] = deque()
        self.fake: FakeProvider | None = None

    async def __call__(self, request: ProviderRequest) -> Reply:
        now = time.monotonic()
        while self._window and self._window[0] <= now - 60:
            self._window.popleft()
        assert self.fake is not None
        if len(self._window) >= PER_MINUTE or self.fake.open > AT_ONCE:
            self.refused.append(now)
            return error(429, "slow down")
        self._window.append(now)
        self.taken.append(now)
        await asyncio.sleep(SECONDS)
        return Reply("ok")

    def rate(self, start: float, end: float) -> float:
        return 60 * sum(start <= at < end for at in self.taken) / (end - start)

    def refusals(self, start: float, end: float) -> float:
        refused = sum(start <= at < end for at in self.refused)
        return refused / max(1, refused + sum(start <= at < end for at in self.taken))


@asynccontextmanager
async def adapter(**env: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The process and its address."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROMPTLOOPER_", "OPENAI_"))}
    ours = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PROMPTLOOPER_LISTEN": "127.0.0.1:0",
        "PROMPTLOOPER_HEALTH_LISTEN": "127.0.0.1:0",
        "PROMPTLOOPER_METRICS_LISTEN": "off",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "promptlooper.adapter"), env={**kept, **ours, **env}, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        while (found := re.search(rb"\bport=(\d+)", line := await process.stderr.readline())) is None or (
            b"serving" not in line
        ):
            assert line, "it ended"
        log = asyncio.create_task(process.stderr.read())
        yield process, f"127.0.0.1:{found[1].decode()}"
        if process.returncode is None:
            process.kill()
        await log
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def asks_for_ever(client: AdapterClient) -> None:
    request = CompletionRequest("fake/m", (Message("user", "hi"),), {"max_tokens": 5}, 60.0, experiment_id="e")
    while True:
        try:
            await client.complete(request)
        except ProviderRateLimited as error:
            await asyncio.sleep(max(1.0, error.retry_after or 0.0))
        except ServiceUnavailable:  # it was killed
            return


@pytest.mark.timeout(330)
async def test_three_adapters_use_the_limit_up_and_keep_to_it(tmp_path: Path) -> None:
    window = Window()
    with redis_server() as redis:
        async with FakeProvider(window) as fake, AsyncExitStack() as stack:
            window.fake = fake
            path = tmp_path / "providers.yaml"
            limits = f"{{max_concurrency: {AT_ONCE}, requests_per_minute: {PER_MINUTE}}}"
            path.write_text(f"providers: [{{name: fake, type: openai, base_url: '{fake.base_url}', limits: {limits}}}]")
            env = {"PROMPTLOOPER_PROVIDERS": str(path), "PROMPTLOOPER_REDIS_URL": redis.url}
            adapters = [await stack.enter_async_context(adapter(**env)) for _ in range(3)]
            clients = [await stack.enter_async_context(connected(address)) for _, address in adapters]
            callers = [asyncio.create_task(asks_for_ever(one)) for one in clients for _ in range(CALLERS)]
            began = time.monotonic()
            await asyncio.sleep(120)
            killed = time.monotonic()
            adapters[0][0].kill()
            await asyncio.sleep(60)
            stopped = time.monotonic()
            redis.stop()
            await asyncio.sleep(60)
            ended = time.monotonic()
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
    for name, start, end in (
        ("first minute", began, began + 60),
        ("three Adapters", began + 60, killed),
        ("one was killed", killed, stopped),
        ("Redis was stopped", stopped, ended),
    ):
        print(f"{name}: {window.rate(start, end):.0f} a minute, {100 * window.refusals(start, end):.2f} % refused")
    assert window.rate(began + 60, killed) == pytest.approx(PER_MINUTE, rel=0.05)
    assert window.rate(killed + 10, stopped) > 0.9 * PER_MINUTE
    assert window.refusals(began + 60, ended) < 0.02
    assert window.rate(stopped, ended) > 0.5 * PER_MINUTE  # each has a third of it, and one of them is dead
    assert fake.most_open <= AT_ONCE
