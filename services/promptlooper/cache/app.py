"""Builds and joins the Cache service."""

from __future__ import annotations

import logging
from functools import partial

from promptlooper.cache import servicer
from promptlooper.cache.core import CacheCore
from promptlooper.cache.metrics import CacheMetrics
from promptlooper.cache.settings import CacheSettings
from promptlooper.cache.store.redis import RedisStore
from promptlooper.rpc.metrics import exposed
from promptlooper.rpc.service import service, until_stopped

log = logging.getLogger(__name__)
DAY = 86400.0


async def run(settings: CacheSettings) -> None:
    """Serves until a signal comes. Healthy also while Redis is away: calls then say so, and callers go on without."""
    async with RedisStore(
        settings.redis_url,
        password_file=settings.redis_password_file,
        ca_file=settings.redis_ca_file,
        value_ttl=settings.cache_ttl_days * DAY,
        timeout=settings.redis_timeout,
        cluster=settings.redis_cluster,
    ) as store:
        core = CacheCore(store)
        services = {servicer.SERVICE_NAME: partial(servicer.register, core=core)}
        async with (
            core.counts.told(),
            exposed("cache", settings, CacheMetrics(core, store)) as calls,
            service(settings, services, log=log, calls=calls),
        ):
            await until_stopped(settings)
