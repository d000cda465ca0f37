"""A gateway over the real wire to a fake provider, with time that passes only when it sleeps."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from promptlooper.adapter.config import read_providers_file
from promptlooper.adapter.gateway import Gateway
from promptlooper.adapter.limits.lanes import Lanes
from promptlooper.adapter.providers.registry import built_pool, entries_with_built_in, rules_of
from promptlooper.adapter.routes.router import Router
from promptlooper.completion import CompletionRequest, Message
from promptlooper.testing.clock import ManualClock
from promptlooper.testing.provider import FakeProvider

KEY = "sk-canary-0123456789abcdef"


class Time(ManualClock):
    """Passes only when the gateway sleeps."""

    def __init__(self) -> None:
        super().__init__(datetime(2026, 11, 23, 12, tzinfo=UTC))
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)


MakeGateway = Callable[..., Gateway]


@pytest.fixture
def asking() -> Callable[..., CompletionRequest]:
    """Makes a request of one user message; other keywords are parameters."""

    def make(
        question: str = "hi there", *, model: str = "openai/gpt-4o", timeout: float = 30.0, **params: Any
    ) -> CompletionRequest:
        return CompletionRequest(model, (Message("user", question),), params, timeout)

    return make


@pytest.fixture
def key() -> str:
    """A canary: it must never be seen anywhere but in the request's header."""
    return KEY


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def gateways(time: Time, tmp_path: Path) -> AsyncIterator[MakeGateway]:
    """Makes gateways from environment variables and the text of a providers file, and closes them."""
    made: list[Gateway] = []

    def make(providers: str = "", **env: str) -> Gateway:
        path = tmp_path / "providers.yaml"
        path.write_text(providers)
        entries = entries_with_built_in(read_providers_file(path) if providers else ())
        gateway = Gateway(
            Router(
                {entry.name: built_pool(entry, env, clock=time) for entry in entries}, clock=time, random=lambda: 0.5
            ),
            Lanes(rules_of(entries), time),
            clock=time,
            sleep=time.sleep,
        )
        made.append(gateway)
        return gateway

    yield make
    for gateway in made:
        await gateway.aclose()


@pytest.fixture
async def fake() -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as provider:
        yield provider


@pytest.fixture
def gateway(gateways: MakeGateway, fake: FakeProvider) -> Gateway:
    return gateways(OPENAI_BASE_URL=fake.base_url, OPENAI_API_KEY=KEY)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both ends of every connection are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
