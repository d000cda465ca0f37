"""Builds and joins the Adapter."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from promptlooper.adapter.config import read_providers_file
from promptlooper.adapter.gateway import Gateway
from promptlooper.adapter.limits.lane import Keeper
from promptlooper.adapter.limits.lanes import Here, Lanes
from promptlooper.adapter.limits.limiter import Lane
from promptlooper.adapter.providers.registry import built_pool, entries_with_built_in, rules_of
from promptlooper.adapter.routes.router import Router
from promptlooper.clock import Clock, SystemClock, random_id

if TYPE_CHECKING:
    from promptlooper.adapter.limits.shared_ledger import Fleet
    from promptlooper.adapter.settings import AdapterSettings

_log = logging.getLogger(__name__)


@asynccontextmanager
async def gateway_from(
    providers_file: Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    clock: Clock | None = None,
    keeper: Callable[[Lane], Keeper] | None = None,
) -> AsyncIterator[Gateway]:
    """A gateway over the built-in providers and those of the file; keys and addresses come from `env`, by default the
    process's own. `keeper` is where limits are shared with other Adapters; without it they are this process's. Raises
    InvalidArgument where the file or an address is wrong. Lifts the process's soft limit of open files to the hard
    one."""
    _allow_many_connections()
    env = os.environ if env is None else env
    clock = clock or SystemClock()
    entries = entries_with_built_in(read_providers_file(providers_file) if providers_file else ())
    router = Router({entry.name: built_pool(entry, env, clock=clock) for entry in entries}, clock=clock)
    own = {entry.name for entry in entries if entry.type == "local"}  # each Adapter has a local model of its own

    def keeper_of(lane: Lane) -> Keeper:
        return Here(clock) if keeper is None or lane.provider in own else keeper(lane)

    gateway = Gateway(router, Lanes(rules_of(entries), clock, keeper_of), clock=clock)
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
        _fleet(settings) as fleet,
        gateway_from(settings.providers, keeper=fleet.keeper if fleet else None) as gateway,
        exposed("adapter", settings, AdapterMetrics(gateway, fleet.is_up if fleet else None)) as calls,
    ):
        core = servicer.AdapterServicer(gateway)
        services = {servicer.SERVICE_NAME: core.register}
        async with service(settings, services, log=_log, on_drain=core.drain, calls=calls):
            await until_stopped(settings)


@asynccontextmanager
async def _fleet(settings: AdapterSettings) -> AsyncIterator[Fleet | None]:
    """None without Redis."""
    if not settings.redis_url:
        yield None
        return
    # Not above: the embedded composition needs no Redis.
    from promptlooper.adapter.limits.shared_ledger import Fleet

    async with Fleet(
        settings.redis_url,
        SystemClock(),
        random_id(),
        password_file=settings.redis_password_file,
        ca_file=settings.redis_ca_file,
        timeout=settings.redis_timeout,
        cluster=settings.redis_cluster,
    ) as fleet:
        yield fleet


def _allow_many_connections() -> None:
    """The usual soft limit of 1,024 open files is fewer than the provider calls of a few busy Runners."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
