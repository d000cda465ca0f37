"""Two Runners on one database: what one commits reaches the other's watchers by a hint, and without NATS anyhow."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from runner_lab import Lab, ended, experiment, watched
from watch_lab import NEVER, WatchedRunner, on_the_wire, own_connections, seqs, watched_runner

from promptlooper.backing import NatsServer
from promptlooper.experiment import ExperimentState
from promptlooper.experiments import WatchMessage
from promptlooper.runner.events import connection, hints, relay
from promptlooper.runner.events.hints import SUBJECT, Hints
from promptlooper.runner.events.hub import Hub
from promptlooper.runner.events.relay import Relay
from promptlooper.runner.events.watching import token_of
from promptlooper.testing.eventually import eventually
from promptlooper.testing.servers import nats_server


@pytest.fixture
def lab(postgresql_url: str, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    from promptlooper.runner.store.migrate import upgrade

    upgrade(postgresql_url)
    return Lab(postgresql_url, tmp_path_factory.mktemp("lab"))


@pytest.fixture
def postgresql_url(postgres: object) -> Iterator[str]:
    from promptlooper.testing.servers import drop_database, fresh_database

    url = fresh_database(postgres)  # type: ignore[arg-type]
    yield url
    drop_database(postgres, url)  # type: ignore[arg-type]


@pytest.fixture
def broker() -> Iterator[NatsServer]:
    """A NATS of this test's own: it is killed."""
    with nats_server() as server:
        yield server


@asynccontextmanager
async def two_runners(
    lab: Lab, nats_url: str, *, look_again: float, relays: bool = False
) -> AsyncIterator[tuple[WatchedRunner, WatchedRunner]]:
    async with AsyncExitStack() as stack:
        runners = []
        for n in range(2):
            (folder := lab.folder / str(n)).mkdir()
            of_its_own = Lab(lab.database_url, folder, lab.model)
            # The second one takes no part in the work: its engine's turns would tell its watchers, too.
            idle = {"slots": 0, "own_only": True} if n else {}
            runner = await stack.enter_async_context(watched_runner(of_its_own, Hub(look_again), **idle))
            await stack.enter_async_context(Hints(runner.hub, nats_url).running())
            if relays:
                await stack.enter_async_context(Relay(runner.database, runner.hub, nats_url).running())
            runners.append(runner)
        yield runners[0], runners[1]


@asynccontextmanager
async def listening(server: NatsServer, subject: str = SUBJECT) -> AsyncIterator[tuple[Client, list[bytes]]]:
    heard: list[bytes] = []

    async def hear(message: nats.aio.msg.Msg) -> None:
        heard.append(message.data)

    client = await nats.connect(server.url)
    await client.subscribe(subject, cb=hear)
    await client.flush()
    try:
        yield client, heard
    finally:
        await client.close()


async def both_hint(runners: tuple[WatchedRunner, WatchedRunner], heard: list[bytes]) -> None:
    """Returns when both are connected: what one of them says is heard."""
    for n, runner in enumerate(runners):

        def said(runner: WatchedRunner = runner, name: str = f"hello-{n}") -> bool:
            runner.hub.advanced(name)
            return any(name.encode() in payload for payload in heard)

        await eventually(said)


async def test_what_one_runner_commits_reaches_the_watchers_of_the_other_without_their_looking(
    lab: Lab, broker: NatsServer
) -> None:
    async with listening(broker) as (_, heard), two_runners(lab, broker.url, look_again=NEVER) as (working, watching):
        await both_hint((working, watching), heard)
        lab.model.go.clear()
        created = await working.core.create(experiment("{{ input.n }}", rows=[{"n": n} for n in range(40)]))
        following = asyncio.ensure_future(
            watched(watching.core, created.experiment_id, token_of(created.experiment_id, 0))
        )
        await eventually(lambda: watching.database.reads["news_after"])
        lab.model.go.set()
        messages = await following
        assert messages[-1].terminal is not None
        assert seqs(messages) == list(range(1, messages[-1].event_seq + 1))


async def test_what_a_client_changes_at_one_runner_wakes_the_engine_of_the_other(lab: Lab, broker: NatsServer) -> None:
    async with listening(broker) as (_, heard), two_runners(lab, broker.url, look_again=NEVER) as (working, other):
        await both_hint((working, other), heard)
        woken: list[str] = []
        working.hub.when_changed(lambda: woken.append("changed"))
        created = await other.core.create(experiment("x"))
        await eventually(lambda: woken)
        assert any(created.experiment_id.encode() in payload and b'"changed":[]' not in payload for payload in heard)
        heard_before = len(woken)
        working.hub.advanced(created.experiment_id)
        await ended(working.core, created.experiment_id)
        assert len(woken) == heard_before


async def test_the_relay_hears_of_what_other_runners_commit(
    lab: Lab, broker: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "EVERYTHING", NEVER)
    subject = "promptlooper.v1.events.>"
    lab.model.go.clear()
    async with listening(broker) as (_, heard), listening(broker, subject) as (_, published):
        async with two_runners(lab, broker.url, look_again=NEVER, relays=True) as runners:
            await both_hint(runners, heard)
            await eventually(lambda: sum(runner.database.reads["unpublished"] for runner in runners))
            created = await runners[0].core.create(experiment("x"))
            await lab.model.called.wait()
            start = (await runners[0].core.get(created.experiment_id)).event_seq
            await eventually(lambda: len(published) == start)
            for n, runner in enumerate(runners, 1):  # one of them is not the one that publishes
                await runner.append(created.experiment_id, 1)
                await eventually(lambda n=n: len(published) == start + n)


async def test_without_nats_watchers_of_another_runner_hear_by_looking(lab: Lab, broker: NatsServer) -> None:
    await asyncio.to_thread(broker.stop)
    async with two_runners(lab, broker.url, look_again=0.05) as (working, watching):
        created = await working.core.create(experiment("{{ input.n }}", rows=[{"n": n} for n in range(40)]))
        messages = await watched(watching.core, created.experiment_id, token_of(created.experiment_id, 0))
        assert messages[-1].terminal is not None
        assert seqs(messages) == list(range(1, messages[-1].event_seq + 1))


async def test_hints_come_again_after_nats_was_away_and_it_is_said_once(
    lab: Lab, broker: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="runner.hints")
    async with two_runners(lab, broker.url, look_again=NEVER) as (working, watching):
        async with listening(broker) as (_, heard):
            await both_hint((working, watching), heard)
        await asyncio.to_thread(broker.kill)
        for n in range(200):
            working.hub.advanced(f"lost-{n}")
        await eventually(lambda: len(caplog.records) >= 2)
        await asyncio.to_thread(broker.start)
        async with listening(broker) as (_, heard):
            await both_hint((working, watching), heard)
            created = await working.core.create(experiment("x"))
            done = await ended(watching.core, created.experiment_id)
            assert done.state is ExperimentState.COMPLETED
        await eventually(lambda: len(caplog.records) == 4)
    said = [record.message for record in caplog.records]
    assert sum("each looks by itself" in line for line in said) == 2  # once a Runner
    assert sum("again" in line for line in said) == 2


async def test_what_is_no_hint_changes_nothing(lab: Lab, broker: NatsServer) -> None:
    async with listening(broker) as (client, heard), two_runners(lab, broker.url, look_again=NEVER) as runners:
        await both_hint(runners, heard)
        told: list[str] = []
        runners[0].hub.when_changed(lambda: told.append("changed"))
        bad = (b"", b"{", b"[]", b'{"changed": "abc", "advanced": []}', b'{"changed": [1], "advanced": []}', b"\xff")
        for payload in (
            *bad,
            b'{"changed": ["%s"], "advanced": []}' % (b"x" * 64),
            b'{"changed": ["good"], "advanced": []}',
        ):
            await client.publish(SUBJECT, payload)
        await eventually(lambda: told)
        assert told == ["changed"]


async def test_tokens_survive_restarts_of_the_runner_and_the_loss_of_the_storage_of_nats(
    lab: Lab, broker: NatsServer
) -> None:
    rows = [{"n": n} for n in range(60)]
    heard: list[WatchMessage] = []
    token = ""
    for life in range(4):
        lab.model.go.set()
        async with watched_runner(lab) as runner, on_the_wire(runner.core, runner.hub) as address:
            async with (
                Relay(runner.database, runner.hub, broker.url).running(),
                Hints(runner.hub, broker.url).running(),
            ):
                async with own_connections(address, 1) as (client,):
                    if not token:
                        spec = experiment("{{ input.n }}", rows=rows, limits={"max_concurrency": 2})
                        created = await client.create(spec)
                        token = token_of(created.experiment_id, 0)
                    async with aclosing(client.watch(created.experiment_id, token)) as watch:
                        for _ in range(40 if life < 3 else 1_000):
                            heard.append(await anext(watch))
                            token = heard[-1].resume_token
                            if heard[-1].terminal is not None:
                                break
                        lab.model.go.clear()
                    assert (heard[-1].terminal is not None) == (life == 3)
        await asyncio.to_thread(broker.kill)
        shutil.rmtree(broker.data)
        broker.data.mkdir()
        await asyncio.to_thread(broker.start)
    end = heard[-1].terminal
    assert end is not None
    assert (end.state, end.counts.completed) == (ExperimentState.COMPLETED, len(rows))
    assert seqs(heard) == list(range(1, end.event_seq + 1))


def test_hints_are_few_and_bounded() -> None:
    many = [f"{n:063d}" for n in range(1_000)]
    parts = hints.payloads(many, many[:10])
    assert len(parts) == 3
    assert all(len(part) < hints.LARGEST_HINT for part in hints.payloads(many, many))
    understood = [hints.hint_of(part) for part in parts]
    assert [name for hint in understood if hint for name in hint[0]] == many
    assert [name for hint in understood if hint for name in hint[1]] == many[:10]
    assert hints.payloads([], []) == []


async def test_hints_go_on_when_their_connections_were_closed_for_good(
    broker: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Client] = []

    async def kept(*args: Any, **kwargs: Any) -> Client:
        made.append(await connection.connected(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(hints, "connected", kept)
    monkeypatch.setattr(hints, "LOOK_AT_LEAST", 0.05)
    one, other = Hub(), Hub()
    async with Hints(one, broker.url).running(), Hints(other, broker.url).running():
        with one.listening() as news_of_one, other.listening() as news_of_other:

            def hear_each_other() -> bool:
                one.changed("said by one")
                other.changed("said by the other")
                return "said by the other" in news_of_one.take()[0] and "said by one" in news_of_other.take()[0]

            await eventually(hear_each_other)
            for client in made[:]:
                await client.close()
            await eventually(lambda: len(made) == 4)
            await eventually(hear_each_other)
