"""The relay: publishes committed events to NATS, in order, and records how far it has come.

SQL is the truth, NATS is told. What is not acknowledged is published again; JetStream drops repeats by `Nats-Msg-Id`,
plain subscribers by `Promptlooper-Event-Seq`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial

import sqlalchemy as sa
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, PubAck, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from promptlooper import tracing
from promptlooper.errors import ExperimentNotFound, StoreUnavailable
from promptlooper.failpoints import Failpoints
from promptlooper.run import Event
from promptlooper.runner.counts import EventLag
from promptlooper.runner.events.connection import AFTER_FAILURE, OPEN, NatsSecurity, connected
from promptlooper.runner.events.hub import Hub, News
from promptlooper.runner.store import event_log, repository
from promptlooper.runner.store.database import Database
from promptlooper.runner.traces import RunTraces
from promptlooper.settings import masked
from promptlooper.wire.events import event_to_pb

log = logging.getLogger("runner.relay")
STREAM = "PROMPTLOOPER_EVENTS"
SUBJECTS = "promptlooper.v1.events.>"
MANY = 500  # experiments with news: then it is cheaper to look at all
PAGE = 500  # events published before their acks are awaited
TOGETHER = 0.1  # seconds for which events are collected: a page costs about the same for 3 as for 100
POLL = 1.0  # seconds
EVERYTHING = 5.0  # seconds between looks at all experiments: other processes' commits, and what was left over
ACK_TIMEOUT = 5.0
# After NATS was away, plain subscribers get time to come back (nats-py waits 2 s by default), and what was published in
# the last seconds before is published again: a server that is killed may not have passed it on.
SETTLE = 3.0
REPEATED = 3.0
DUPLICATE_WINDOW = 600  # seconds: for so long the stream drops repeats
LOCK = 0x70726C72
STREAM_CONFIG = StreamConfig(
    name=STREAM,
    subjects=[SUBJECTS],
    retention=RetentionPolicy.LIMITS,
    storage=StorageType.FILE,
    discard=DiscardPolicy.OLD,
    max_age=72 * 3600,  # seconds
    max_bytes=4 * 1024**3,
    max_msg_size=64 * 1024,
    duplicate_window=DUPLICATE_WINDOW,
)


def subject_of(event: Event) -> str:
    """`promptlooper.v1.events.<project>.<experiment_id>.<experiment|run>.<verb>`."""
    return f"promptlooper.v1.events.{event.project}.{event.experiment_id}.{event.kind}"


def headers_of(event: Event, traceparent: str = "") -> dict[str, str]:
    headers = {
        "Nats-Msg-Id": f"{event.experiment_id}:{event.event_seq}",
        "Promptlooper-Event-Seq": str(event.event_seq),
    }
    if event.run_id is not None:
        headers["Promptlooper-Run-Id"] = event.run_id
    if traceparent:
        headers["traceparent"] = traceparent
    return headers


class Relay:
    """One per database: with several Runners, the one that holds the database's advisory lock."""

    def __init__(
        self,
        database: Database,
        hub: Hub,
        url: str,
        *,
        security: NatsSecurity = OPEN,
        failpoints: Failpoints | None = None,
    ) -> None:
        self._database, self._hub, self._url, self._security = database, hub, url, security
        self._failpoints = failpoints or Failpoints()
        self.lag = EventLag()
        self._client: Client | None = None
        self._traces: OrderedDict[str, RunTraces] = OrderedDict()
        self._down = False
        self._look_at_all = self._published_at = self._counted = 0.0  # monotonic
        self._interrupted_at: float | None = None  # monotonic
        self._recent: deque[tuple[float, str, int]] = (
            deque()
        )  # (monotonic time, experiment_id, event_seq before a page)

    @property
    def is_connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run(), name="relay")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        """For ever: a connection that was closed for good is replaced, and a fault of it told."""
        while True:
            try:
                client = await self._connected()
                self._client = client
                try:
                    with self._hub.listening() as news:
                        await self._relay(client, news)
                finally:
                    await client.close()
            except Exception:
                log.exception("events wait in the database, the connection to NATS met a fault")
            await asyncio.sleep(POLL)

    async def _relay(self, client: Client, news: News) -> None:
        jetstream = client.jetstream(publish_async_max_pending=2 * PAGE)
        ready = False
        while True:
            try:
                async with self._database.advisory_lock(LOCK) as held:
                    while time.monotonic() < self._look_at_all or await held():
                        if self._interrupted_at is not None and client.is_connected:
                            await asyncio.sleep(SETTLE)
                            await self._publish_again(jetstream, self._interrupted_at)
                            self._interrupted_at = None
                        if not ready:
                            await _declare_stream(jetstream)
                            ready = True
                        await self._publish_news(jetstream, news)
                news.take()  # another Runner's relay holds the lock
                self.lag.behind(0, time.monotonic())
                await asyncio.sleep(POLL)
            except StoreUnavailable as error:
                self._look_at_all = 0.0
                log.warning("events wait, the database does not answer: %s", error)
                await asyncio.sleep(AFTER_FAILURE)
            except (NatsError, APIError, OSError, TimeoutError) as error:
                # Kept for the next try: a stream that is gone (its storage was lost) is declared again.
                ready, self._look_at_all = False, 0.0
                if not self._down:
                    log.warning("events wait in the database, NATS does not take them: %r", error)
                self._down = True
                await self._count_backlog()
                if client.is_closed:  # for good: NATS refused it, as after a change of credentials
                    return
                await asyncio.sleep(AFTER_FAILURE)
            except Exception:
                log.exception("the relay met a fault; it goes on")
                ready, self._look_at_all = False, 0.0
                await asyncio.sleep(POLL)

    async def _publish_news(self, jetstream: JetStreamContext, news: News) -> None:
        """Waits for news or for the time to look at all experiments, and publishes what there is."""
        if time.monotonic() < self._look_at_all:
            await news.some(POLL)
            await asyncio.sleep(max(0.0, self._published_at + TOGETHER - time.monotonic()))
            self._published_at = time.monotonic()
            changed, advanced = news.take()
            if changed:
                await self._publish_deletions(jetstream)
            if advanced:
                await self._publish_all(jetstream, advanced if len(advanced) < MANY else None)
        else:
            news.take()
            await self._publish_deletions(jetstream)
            await self._publish_all(jetstream, None)
            self._look_at_all = time.monotonic() + EVERYTHING

    async def _connected(self) -> Client:
        """Goes on until NATS is there, and reconnects for ever after."""
        warned = False

        async def report(error: Exception) -> None:
            nonlocal warned
            await self._count_backlog()
            if not warned:
                warned = True
                log.warning("NATS at %s: %r; events wait in the database until it answers", masked(self._url), error)

        async def interrupted() -> None:
            self._interrupted_at = self._interrupted_at or time.monotonic()

        return await connected(
            self._url, "promptlooper-runner", security=self._security, report=report, interrupted=interrupted
        )

    async def _publish_all(self, jetstream: JetStreamContext, among: list[str] | None) -> None:
        """Publishes page after page of what is new, of all experiments or `among` some."""
        while behind := await self._unpublished(among):
            await self._publish_pages(jetstream, behind)

    async def _unpublished(self, among: list[str] | None) -> list[tuple[str, str, int, int]]:
        behind = await self._database.read(partial(event_log.unpublished, limit=100, among=among))
        waiting = sum(event_seq - published for _, _, published, event_seq in behind)
        self.lag.behind(waiting, time.monotonic())
        return behind

    async def _count_backlog(self) -> None:
        """While NATS is away. Not each time it is tried: the look goes through all experiments."""
        if time.monotonic() - self._counted >= EVERYTHING:
            self._counted = time.monotonic()
            with suppress(StoreUnavailable):
                await self._unpublished(None)

    async def _publish_pages(self, jetstream: JetStreamContext, behind: list[tuple[str, str, int, int]]) -> None:
        """One page of each experiment."""
        for experiment_id, project, published, event_seq in behind:
            read = partial(
                event_log.kept_after, experiment_id=experiment_id, project=project, event_seq=published, limit=PAGE
            )
            page = await self._database.read(read)
            if page:
                await self._publish(jetstream, page, await self._places(page))
                self._remember(experiment_id, published)
            # No page: they were deleted, by retention before NATS was in use or with the experiment.
            done = page[-1].event_seq if page else event_seq
            await self._database.write(partial(event_log.record_published, published={experiment_id: done}))

    async def _publish_deletions(self, jetstream: JetStreamContext) -> None:
        """What NATS was not told before of a deleted experiment went with it."""
        while page := await self._database.read(partial(event_log.deletions, limit=PAGE)):
            await self._publish(jetstream, page)
            for event in page:
                self._remember(event.experiment_id, event.event_seq - 1)
            names = [event.experiment_id for event in page]
            await self._database.write(partial(event_log.record_deletions_published, experiment_ids=names))

    async def _places(self, page: list[Event]) -> list[str]:
        """Where in a trace each event of a page belongs; nothing where nothing is traced."""
        if not tracing.is_on():
            return []
        experiment_id = page[0].experiment_id
        if (traces := self._traces.get(experiment_id)) is None:
            found = await self._database.read(partial(repository.trace_of, experiment_id=experiment_id))
            traces = self._traces[experiment_id] = RunTraces(experiment_id, *found)
            while len(self._traces) > MANY:
                self._traces.popitem(last=False)
        return [traces.of_event(event) for event in page]

    async def _publish(self, jetstream: JetStreamContext, page: list[Event], places: Sequence[str] = ()) -> None:
        await _publish(jetstream, page, self._failpoints, places)
        self._failpoints.hit("ack_after")
        self.lag.published += len(page)
        if self._down:
            self._down = False
            log.info("NATS takes events again")

    def _remember(self, experiment_id: str, before: int) -> None:
        now = time.monotonic()
        self._recent.append((now, experiment_id, before))
        while self._recent[0][0] < now - REPEATED:
            self._recent.popleft()

    async def _publish_again(self, jetstream: JetStreamContext, interrupted_at: float) -> None:
        """The events of the last seconds before the interruption; the stream drops them as repeats. After an outage
        that is longer than it remembers they are let be: a reader of the stream must see each once."""
        await _declare_stream(jetstream)
        oldest = max(interrupted_at - REPEATED, time.monotonic() - 0.8 * DUPLICATE_WINDOW)
        for published_at, experiment_id, before in list(self._recent):
            if published_at < oldest:
                continue
            read = partial(_kept_after, experiment_id=experiment_id, event_seq=before)
            await _publish(jetstream, await self._database.read(read), self._failpoints)
        self._recent.clear()


def _kept_after(connection: sa.Connection, experiment_id: str, event_seq: int) -> list[Event]:
    """Also of an experiment that was deleted since."""
    try:
        project = repository.get(connection, experiment_id, now_us=0).project
    except ExperimentNotFound:
        return event_log.deletions(connection, 1, only=experiment_id)
    return event_log.kept_after(connection, experiment_id, project, event_seq, PAGE)


async def _publish(
    jetstream: JetStreamContext, page: list[Event], failpoints: Failpoints, places: Sequence[str] = ()
) -> None:
    """Publishes in order and waits for every ack. Raises where one is missing: then the page is published again."""
    acks: list[asyncio.Future[PubAck]] = []
    with ExitStack() as stack:
        stack.callback(_forget, acks)
        failpoints.hit("publish_before")
        for event, place in zip(page, places or [""] * len(page), strict=True):
            span = stack.enter_context(tracing.child("publish", place, "producer")) if place else tracing.NOTHING
            payload, headers = event_to_pb(event).SerializeToString(), headers_of(event, span.traceparent)
            acks.append(await jetstream.publish_async(subject_of(event), payload, headers=headers))
            if span:
                span.set({"messaging.system": "nats", "promptlooper.event.kind": event.kind})
        failpoints.hit("publish_after")
        async with asyncio.timeout(ACK_TIMEOUT):
            acknowledged = asyncio.gather(*acks)
            for ack in acks[:1]:
                await asyncio.wait([ack])
            failpoints.hit("ack_before")
            await acknowledged


def _forget(acks: list[asyncio.Future[PubAck]]) -> None:
    """An ack that never comes would hold its place among the pending ones for ever."""
    for ack in acks:
        ack.cancel()


async def _declare_stream(jetstream: JetStreamContext) -> None:
    try:
        await jetstream.stream_info(STREAM)
    except NotFoundError:
        await jetstream.add_stream(STREAM_CONFIG)
