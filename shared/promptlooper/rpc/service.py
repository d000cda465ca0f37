"""A service at its address, as its settings say: the one place where settings become a server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from promptlooper.rpc.process import until_signalled
from promptlooper.rpc.server import Register, Serving, serving
from promptlooper.settings import ServiceSettings


@asynccontextmanager
async def service(
    settings: ServiceSettings,
    services: Mapping[str, Register],
    *,
    log: logging.Logger,
    on_drain: Callable[[], None] | None = None,
) -> AsyncIterator[Serving]:
    """Serves `services` until the block is left; then it drains. What it serves, and where, goes to `log`."""
    async with serving(
        settings.listen,
        services,
        health_listen=settings.health_listen,
        reflection=settings.reflection,
        grace=settings.grace,
        lame_duck=settings.lame_duck,
        on_drain=on_drain,
    ) as server:
        log.info("serving", extra={**settings.described(), "port": server.port, "health_port": server.health_port})
        yield server


async def until_stopped(settings: ServiceSettings) -> None:
    """Waits for a signal; from then on the process has the time that the settings give it to end."""
    await until_signalled(settings.lame_duck + settings.grace)
