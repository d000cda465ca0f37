"""Builds and joins the Adapter."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from promptlooper.adapter.config import read_providers_file
from promptlooper.adapter.gateway import Gateway
from promptlooper.adapter.limits import LocalLimiter
from promptlooper.adapter.providers.registry import built_pool, entries_with_built_in, max_concurrency
from promptlooper.adapter.routes.router import Router
from promptlooper.clock import Clock, SystemClock

if TYPE_CHECKING:
    from promptlooper.adapter.settings import AdapterSettings

_log = logging.getLogger(__name__)


@asynccontextmanager
async def gateway_from(
    providers_file: Path | None = None, *, env: Mapping[str, str] | None = None, clock: Clock | None = None
) -> AsyncIterator[Gateway]:
    """A gateway over the built-in providers and those of the file; keys and addresses come from `env`, by default the
    process's own. Raises InvalidArgument where the file or an address is wrong. Lifts the process's soft limit of open
    files to the hard one."""
    _allow_many_connections()
    env = os.environ if env is None else env
    clock = clock or SystemClock()
    entries = entries_with_built_in(read_providers_file(providers_file) if providers_file else ())
    router = Router({entry.name: built_pool(entry, env, clock=clock) for entry in entries}, clock=clock)
    limits = {entry.name: max_concurrency(entry) for entry in entries}
    gateway = Gateway(router, LocalLimiter(limits), clock=clock)
    gateway.counts.limits.update((name, limit) for name, limit in limits.items() if limit is not None)
    try:
        yield gateway
    finally:
        await asyncio.shield(gateway.aclose())


async def run(settings: AdapterSettings) -> None:
    """Serves until a signal comes."""
    # Not above: the embedded composition takes `gateway_from` without gRPC.
    from promptlooper.adapter import servicer
    from promptlooper.adapter.metrics import AdapterMetrics
    from promptlooper.rpc.metrics import exposed
    from promptlooper.rpc.service import service, until_stopped

    async with (
        gateway_from(settings.providers) as gateway,
        exposed("adapter", settings, AdapterMetrics(gateway.counts)) as calls,
    ):
        core = servicer.AdapterServicer(gateway)
        services = {servicer.SERVICE_NAME: core.register}
        async with service(settings, services, log=_log, on_drain=core.drain, calls=calls):
            await until_stopped(settings)


def _allow_many_connections() -> None:
    """The usual soft limit of 1,024 open files is fewer than the provider calls of a few busy Runners."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
