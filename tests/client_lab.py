"""A real Runner on a port of its own, in a thread of its own: for clients that block the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from promptlooper.client.loop_thread import LoopThread
from promptlooper.embedded.composition import embedded
from promptlooper.rpc.server import serving
from promptlooper.runner.servicer import SERVICE_NAME, register

LISTEN = "127.0.0.1:0"
PROVIDERS = """\
providers:
  - {name: slow, type: mock, script: [{model: echo, echo: true, delay: 0.05}]}
  - {name: broken, type: mock, script: [{model: echo, error: {status: 400, message: not today}}]}
"""
CAPITALS = """\
name: capitals
inputs:
  - {country: France, expected: France}
  - {country: Japan, expected: Japan}
model: mock/echo
prompt: "The capital of {{ input.country }}"
scorers:
  - {icontains: "{{ expected }}", threshold: 1}
"""


@contextmanager
def runner_on_the_wire(folder: Path, **settings: Any) -> Iterator[str]:
    """Its address. It answers as `mock/echo` at once, as `slow/echo` after 50 ms, and as `broken/echo` never.
    `settings` are those of `serving`."""
    providers = folder / "providers.yaml"
    providers.write_text(PROVIDERS)
    thread = LoopThread()
    try:
        served = thread.iterate(partial(_served, folder / "data", providers, settings))
        yield next(served)
    finally:
        thread.close()


async def _served(home: Path, providers: Path, settings: dict[str, Any]) -> AsyncGenerator[str, None]:
    async with embedded(home, providers) as core:
        services = {SERVICE_NAME: partial(register, core=core)}
        async with serving(LISTEN, services, health_listen=LISTEN, grace=1.0, **settings) as server:
            yield f"127.0.0.1:{server.port}"
            await asyncio.Event().wait()
