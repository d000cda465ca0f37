"""Builds and joins the Scorer service."""

from __future__ import annotations

import logging
from functools import partial

from promptlooper.rpc.process import until_signalled
from promptlooper.rpc.server import serving
from promptlooper.scorer import servicer
from promptlooper.scorer.registry import ScorerCore
from promptlooper.scorer.settings import ScorerSettings

log = logging.getLogger(__name__)


async def run(settings: ScorerSettings) -> None:
    """Serves until a signal comes."""
    async with serving(
        settings.listen,
        {servicer.SERVICE_NAME: partial(servicer.register, core=ScorerCore())},
        health_listen=settings.health_listen,
        reflection=settings.reflection,
        grace=settings.grace,
        lame_duck=settings.lame_duck,
    ) as server:
        log.info("serving", extra={**settings.described(), "port": server.port, "health_port": server.health_port})
        await until_signalled(settings.lame_duck + settings.grace)
