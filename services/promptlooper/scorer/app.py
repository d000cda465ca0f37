"""Builds and joins the Scorer service."""

from __future__ import annotations

import logging
from functools import partial

from promptlooper.rpc.metrics import exposed
from promptlooper.rpc.service import service, until_stopped
from promptlooper.scorer import servicer
from promptlooper.scorer.metrics import ScorerMetrics
from promptlooper.scorer.registry import ScorerCore
from promptlooper.scorer.settings import ScorerSettings

log = logging.getLogger(__name__)


async def run(settings: ScorerSettings) -> None:
    """Serves until a signal comes."""
    core = ScorerCore()
    services = {servicer.SERVICE_NAME: partial(servicer.register, core=core)}
    async with (
        exposed("scorer", settings, ScorerMetrics(core)) as calls,
        service(settings, services, log=log, calls=calls),
    ):
        await until_stopped(settings)
