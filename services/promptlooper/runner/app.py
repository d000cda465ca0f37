"""Builds and joins the Runner: the embedded composition and the service share `runner_core`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from promptlooper.batches import Gateway
from promptlooper.caching import ResponseCache
from promptlooper.clock import Clock, IdMaker, SystemClock, random_id
from promptlooper.failpoints import Failpoints, failpoints_from
from promptlooper.runner.answers import Answers
from promptlooper.runner.batches import USUAL_PACE, BatchPace
from promptlooper.runner.core import RunnerCore
from promptlooper.runner.counts import RunnerCounts
from promptlooper.runner.engine import LEASE_TTL, Engine, EngineParts
from promptlooper.runner.events.hub import Hub
from promptlooper.runner.executing import Executions
from promptlooper.runner.render import Renderer
from promptlooper.runner.scores import Scores
from promptlooper.runner.settings import RunnerSettings
from promptlooper.runner.store.database import IDLE_AT_MOST, Database
from promptlooper.runner.store.migrate import prepare
from promptlooper.scoring import ScoringService
from promptlooper.sources import UPLOADS

log = logging.getLogger("runner")
GATHER = 0.015  # seconds: with the answer it is less than a turn waits anyway


@asynccontextmanager
async def runner_core(
    database: Database,
    gateway: Gateway,
    cache: ResponseCache,
    scoring: ScoringService,
    *,
    slots: int = 1_000,
    own_only: bool = False,
    lease_ttl: float = LEASE_TTL,
    replica: str = "",
    registered: Callable[[str], None] = lambda runner_id: None,
    hub: Hub | None = None,
    clock: Clock | None = None,
    new_id: IdMaker = random_id,
    failpoints: Failpoints | None = None,
    gather: float = 0.0,
    counts: RunnerCounts | None = None,
    upload_limit: int = UPLOADS,
    batch_pace: BatchPace = USUAL_PACE,
) -> AsyncIterator[RunnerCore]:
    """A Runner at work on a database that is up to date. `own_only` limits it to experiments that are created through
    it. A Runner takes the runs of its predecessor of the same `replica` at once. Answers to be stored in the cache and
    outputs to be scored wait `gather` seconds for others, where cache and Scorer are an RPC away. On leaving, running
    calls are stopped and their runs handed back."""
    hub, clock, renderer, failpoints = hub or Hub(), clock or SystemClock(), Renderer(), failpoints or Failpoints()
    answers = Answers(gateway, cache, new_id(), clock, failpoints=failpoints, gather=gather)
    scores = Scores(scoring, renderer, failpoints=failpoints, gather=gather)
    counts = counts or RunnerCounts()
    parts = EngineParts(database, gateway, gateway, answers, scores, renderer, hub, clock, failpoints, counts)
    engine = Engine(
        parts,
        new_id,
        slots,
        own_only=own_only,
        lease_ttl=lease_ttl,
        replica=replica,
        registered=registered,
        batch_pace=batch_pace,
    )
    hub.when_changed(engine.hint)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(answers.aclose)
        stack.push_async_callback(scores.aclose)
        await stack.enter_async_context(engine.running())
        executions = Executions(answers, scores, renderer, gateway, scoring, clock, failpoints, counts, at_once=slots)
        yield RunnerCore(
            database,
            engine,
            hub,
            gateway,
            cache,
            scoring,
            renderer,
            clock,
            new_id,
            failpoints,
            executions,
            upload_limit,
        )


async def run(settings: RunnerSettings) -> None:
    """Serves until a signal comes."""
    # Not above: the embedded composition needs neither gRPC nor NATS.
    from promptlooper.clients import adapter, cache, scorer
    from promptlooper.rpc.metrics import exposed
    from promptlooper.rpc.service import service, until_stopped
    from promptlooper.runner import servicer
    from promptlooper.runner.events.connection import NatsSecurity
    from promptlooper.runner.events.hints import Hints
    from promptlooper.runner.events.relay import Relay
    from promptlooper.runner.events.retention import Retention
    from promptlooper.runner.metrics import RunnerMetrics

    # A frozen Runner must lose its locks before it loses its lease.
    database = Database(
        settings.database_url,
        password_file=settings.database_password_file,
        idle_at_most=min(IDLE_AT_MOST, settings.lease_ttl / 2),
    )
    hub, failpoints, counts = Hub(), failpoints_from(settings.failpoints), RunnerCounts()
    nats = NatsSecurity(settings.nats_credentials_file, settings.nats_ca_file, settings.nats_tls_first)
    relay = None
    if settings.nats_url:
        relay = Relay(database, hub, settings.nats_url, security=nats, failpoints=failpoints)
    metrics = RunnerMetrics(counts, settings.slots, database, hub, relay)
    async with AsyncExitStack() as stack:
        stack.callback(database.close)
        prepare(database)
        enter = stack.enter_async_context
        calls = await enter(exposed("runner", settings, metrics))
        security = settings.channel_security()
        gateway = await enter(adapter.connected(settings.adapter_address, security=security))
        responses = await enter(cache.connected(settings.cache_address, security=security))
        scoring = await enter(scorer.connected(settings.scorer_address, security=security))
        if relay is not None:
            nats.options()  # what is wrong with its files is said now, and not tried for ever
            await enter(relay.running())
            await enter(Hints(hub, settings.nats_url, nats).running())
        relayed = relay is not None
        await enter(Retention(database, SystemClock(), settings.event_retention, relayed=relayed).running())
        core = await enter(
            runner_core(
                database,
                gateway,
                responses,
                scoring,
                slots=settings.slots,
                lease_ttl=settings.lease_ttl,
                replica=settings.replica,
                hub=hub,
                failpoints=failpoints,
                gather=GATHER,
                counts=counts,
                upload_limit=settings.upload_limit,
                batch_pace=BatchPace(settings.batch_poll),
            )
        )
        services = {servicer.SERVICE_NAME: partial(servicer.register, core=core)}
        async with service(settings, services, log=log, on_drain=hub.drain, calls=calls):
            await until_stopped(settings)
            # Beside the calls of clients: both end within the grace, with some of it left to hand runs back.
            draining = asyncio.create_task(core.drain(0.8 * settings.grace))
        await draining
