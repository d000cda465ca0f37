"""Events on NATS: in order, each once in the stream, also when NATS goes and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError
from runner_lab import Lab, ended, experiment, watched

from promptlooper.backing import NatsServer
from promptlooper.experiment import Experiment
from promptlooper.run import Event
from promptlooper.runner.core import RunnerCore
from promptlooper.runner.events import connection, relay
from promptlooper.runner.events.hub import Hub
from promptlooper.runner.events.relay import STREAM, headers_of
from promptlooper.runner.store import event_log
from promptlooper.runner.store.database import Database
from promptlooper.testing.eventually import eventually
from promptlooper.testing.servers import nats_server
from promptlooper.v1.events_pb2 import Event as EventMessage
from promptlooper.wire.events import event_to_pb

SUBJECTS = "promptlooper.v1.events.>"
ROWS = [{"n": n} for n in range(60)]


@pytest.fixture
def broker() -> Iterator[NatsServer]:
    """A NATS of this test's own: it is killed."""
    with nats_server() as server:
        yield server


@asynccontextmanager
async def connected(server: NatsServer) -> AsyncIterator[Client]:
    client = await nats.connect(server.url, max_reconnect_attempts=-1)
    try:
        yield client
    finally:
        await client.close()


async def all_events(runner: RunnerCore, experiment_id: str) -> list[Event]:
    from promptlooper.runner.events.watching import token_of

    messages = await watched(runner, experiment_id, token_of(experiment_id, 0))
    return [message.event for message in messages if message.event]


async def in_stream(client: Client, experiment_id: str) -> list[EventMessage]:
    """What a JetStream reader of the stream sees of an experiment, from the beginning."""
    jetstream = client.jetstream()
    subscription = await jetstream.pull_subscribe(
        f"promptlooper.v1.events.*.{experiment_id}.>",
        stream=STREAM,
        config=ConsumerConfig(ack_policy=AckPolicy.NONE),
    )
    found: list[EventMessage] = []
    while (await subscription.consumer_info()).num_pending:
        found += [EventMessage.FromString(message.data) for message in await subscription.fetch(500, timeout=5)]
    await subscription.unsubscribe()
    return found


async def test_subscribers_and_the_stream_get_every_event_in_order_and_once(lab: Lab, broker: NatsServer) -> None:
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    async with connected(broker) as client:
        await client.subscribe(SUBJECTS, cb=hear)
        await client.flush()
        async with lab.runner(nats_url=broker.url) as runner:
            created = await runner.create(experiment("a {{ input.n }}", "b {{ input.n }}", rows=ROWS, project="team-1"))
            await ended(runner, created.experiment_id)
            events = await all_events(runner, created.experiment_id)
            await eventually(lambda: len(heard) >= len(events))
        assert [EventMessage.FromString(m.data) for m in heard] == [event_to_pb(event) for event in events]
        assert [dict(m.headers or {}) for m in heard] == [headers_of(event) for event in events]
        last = heard[-1]
        assert last.subject == f"promptlooper.v1.events.team-1.{created.experiment_id}.experiment.completed"
        assert await in_stream(client, created.experiment_id) == [event_to_pb(event) for event in events]


async def test_when_nats_is_killed_and_started_the_run_completes_and_the_stream_has_each_event_once(
    lab: Lab, broker: NatsServer
) -> None:
    heard: list[int] = []

    async def hear(message: Msg) -> None:
        heard.append(int((message.headers or {})["Promptlooper-Event-Seq"]))

    async with connected(broker) as client:
        await client.subscribe(SUBJECTS, cb=hear)
        await client.flush()
        async with lab.runner(nats_url=broker.url) as runner:
            spec = experiment("{{ input.n }}", rows=ROWS, limits={"max_concurrency": 2})
            created = await runner.create(spec)
            await eventually(lambda: len(heard) > 20)
            await asyncio.to_thread(broker.kill)
            await ended(runner, created.experiment_id)
            events = await all_events(runner, created.experiment_id)
            await asyncio.to_thread(broker.start)

            async def complete() -> bool:
                try:
                    return len(await in_stream(client, created.experiment_id)) >= len(events)
                except (NotFoundError, nats.errors.Error, TimeoutError) as error:
                    raise AssertionError(repr(error)) from error

            await eventually(complete, within=30)
            stored = await in_stream(client, created.experiment_id)
            assert [event.event_seq for event in stored] == [event.event_seq for event in events]
            await eventually(lambda: heard and heard[-1] == events[-1].event_seq)
    # Repeats are allowed, and told by their numbers: without them the subscriber heard everything in order.
    assert list(dict.fromkeys(heard)) == [event.event_seq for event in events]


async def test_without_nats_experiments_run_and_events_wait_for_it(lab: Lab, broker: NatsServer) -> None:
    await asyncio.to_thread(broker.stop)
    async with lab.runner(nats_url=broker.url) as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS[:5]))
        done = await ended(runner, created.experiment_id)
        assert done.counts.completed == 5
        await asyncio.to_thread(broker.start)
        async with connected(broker) as client:

            async def complete() -> bool:
                try:
                    return len(await in_stream(client, created.experiment_id)) == done.event_seq
                except (NotFoundError, nats.errors.Error, TimeoutError) as error:
                    raise AssertionError(repr(error)) from error

            await eventually(complete, within=30)


async def test_how_much_waits_for_nats_and_since_when_is_known_and_nothing_when_it_is_back(
    lab: Lab, broker: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "EVERYTHING", 0.2)
    await asyncio.to_thread(broker.stop)
    hub, database = Hub(), Database(lab.database_url)
    publishing = relay.Relay(database, hub, broker.url)
    async with lab.runner(hub=hub) as runner, publishing.running():
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS[:5]))
        done = await ended(runner, created.experiment_id)
        await eventually(lambda: publishing.lag.unpublished == done.event_seq)
        assert publishing.lag.seconds(time.monotonic()) > 0
        assert not publishing.is_connected
        await asyncio.to_thread(broker.start)
        await eventually(lambda: publishing.lag.published >= done.event_seq, within=30)
        await eventually(lambda: publishing.lag.seconds(time.monotonic()) == 0)
        assert publishing.is_connected
    database.close()


async def test_a_connection_that_was_closed_for_good_is_replaced(
    lab: Lab, broker: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nats-py does where the server refuses it, after a change of credentials say."""
    made: list[Client] = []

    async def kept(*args: Any, **kwargs: Any) -> Client:
        made.append(await connection.connected(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(relay, "connected", kept)
    async with lab.runner(nats_url=broker.url) as runner, connected(broker) as client:
        for number in (1, 2):
            created = await runner.create(experiment("{{ input.n }}", rows=ROWS[:5]))
            done = await ended(runner, created.experiment_id)

            async def complete(created: Experiment = created, last: int = done.event_seq) -> bool:
                try:
                    return len(await in_stream(client, created.experiment_id)) == last
                except NotFoundError:
                    return False

            await eventually(complete, within=30)
            assert len(made) == number
            await made[-1].close()


async def test_a_deleted_experiment_does_not_stop_the_relay_after_an_outage(lab: Lab, broker: NatsServer) -> None:
    async with lab.runner(nats_url=broker.url) as runner:
        first = await runner.create(experiment("x {{ input.n }}", rows=ROWS[:3]))
        await ended(runner, first.experiment_id)
        async with connected(broker) as client:
            await eventually(lambda: has(client, first.experiment_id, 1))
        await runner.delete(first.experiment_id)
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.start)
        second = await runner.create(experiment("y {{ input.n }}", rows=ROWS[:3]))
        done = await ended(runner, second.experiment_id)
        async with connected(broker) as client:
            await eventually(lambda: has(client, second.experiment_id, done.event_seq), within=30)


async def test_that_an_experiment_is_deleted_is_its_last_event_also_after_an_outage(
    lab: Lab, broker: NatsServer
) -> None:
    async with lab.runner(nats_url=broker.url) as runner, connected(broker) as client:
        told = await runner.create(experiment("x", project="team-1"))
        end = await ended(runner, told.experiment_id)
        await eventually(lambda: has(client, told.experiment_id, end.event_seq))
        await runner.delete(told.experiment_id)
        await eventually(lambda: has(client, told.experiment_id, end.event_seq + 1))
        last = (await in_stream(client, told.experiment_id))[-1]
        assert (last.kind, last.event_seq, last.project) == ("experiment.deleted", end.event_seq + 1, "team-1")
        assert (last.generation, last.experiment.state) == (1, "COMPLETED")
        await asyncio.to_thread(broker.stop)
        untold = await runner.create(experiment("y"))
        end = await ended(runner, untold.experiment_id)
        await runner.delete(untold.experiment_id)
        await asyncio.to_thread(broker.start)
        await eventually(lambda: has(client, untold.experiment_id, 1), within=30)
        (only,) = await in_stream(client, untold.experiment_id)
        assert (only.kind, only.event_seq) == ("experiment.deleted", end.event_seq + 1)


async def test_events_that_were_deleted_before_nats_was_in_use_do_not_stop_the_relay(
    lab: Lab, broker: NatsServer
) -> None:
    async with lab.runner() as runner:
        gone = await runner.create(experiment("x"))
        half_gone = await runner.create(experiment("x"))
        for created in (gone, half_gone):
            end = await ended(runner, created.experiment_id)
    database = Database(lab.database_url)
    try:
        for experiment_id, limit in ((gone.experiment_id, 1_000), (half_gone.experiment_id, 3)):
            delete = partial(
                event_log.delete_old_events, experiment_id=experiment_id, before_us=1 << 60, limit=limit, relayed=False
            )
            await database.write(delete)
    finally:
        database.close()
    async with lab.runner(nats_url=broker.url) as runner, connected(broker) as client:
        after = await runner.create(experiment("x"))
        await ended(runner, after.experiment_id)
        await eventually(lambda: has(client, after.experiment_id, end.event_seq))
        assert [e.event_seq for e in await in_stream(client, half_gone.experiment_id)] == list(
            range(4, end.event_seq + 1)
        )
        assert await in_stream(client, gone.experiment_id) == []


async def has(client: Client, experiment_id: str, count: int) -> bool:
    try:
        return len(await in_stream(client, experiment_id)) >= count
    except (NotFoundError, nats.errors.Error, TimeoutError) as error:
        raise AssertionError(repr(error)) from error
