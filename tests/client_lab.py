"""A real Runner on a port of its own, in a thread of its own: for clients that block the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from watch_lab import on_the_wire

from promptlooper.client.loop_thread import LoopThread
from promptlooper.embedded.composition import embedded

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
def runner_on_the_wire(folder: Path) -> Iterator[str]:
    """Its address. It answers as `mock/echo` at once, as `slow/echo` after 50 ms, and as `broken/echo` never."""
    providers = folder / "providers.yaml"
    providers.write_text(PROVIDERS)
    thread = LoopThread()
    try:
        served = thread.iterate(partial(_served, folder / "data", providers))
        yield next(served)
    finally:
        thread.close()


async def _served(home: Path, providers: Path) -> AsyncGenerator[str, None]:
    async with embedded(home, providers) as core, on_the_wire(core) as address:
        yield address
        await asyncio.Event().wait()
