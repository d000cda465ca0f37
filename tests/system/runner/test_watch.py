"""What a watch promises, on SQLite and on PostgreSQL: order, no gaps, no repeats, one end, also across cuts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from itertools import pairwise
from typing import TypeVar

import pytest
import sqlalchemy as sa
from runner_lab import Lab, ScriptedModel, ended, experiment, watched
from watch_lab import NEVER, CountingDatabase, WatchedRunner, on_the_wire, own_connections, seqs, watched_runner

from promptlooper.clients import resuming
from promptlooper.clients.runner import connected
from promptlooper.clock import SystemClock
from promptlooper.errors import DomainError, ExperimentNotFound, ResumeTokenInvalid, StoreUnavailable
from promptlooper.experiment import ExperimentState
from promptlooper.experiments import WatchMessage
from promptlooper.runner.events.hub import Hub
from promptlooper.runner.events.watching import Watching, token_of
from promptlooper.testing.eventually import eventually
from promptlooper.testing.proxy import FaultProxy, fault_proxy

ROWS = [{"n": n} for n in range(70)]
CUTS = 200
T = TypeVar("T")


async def held(runner: WatchedRunner, lab: Lab) -> str:
    """An experiment whose one run waits for the model."""
    lab.model.go.clear()
    created = await runner.core.create(experiment("x"))
    await lab.model.called.wait()
    return str(created.experiment_id)


class Losses:
    """Counts what a client says of its connection."""

    def __init__(self) -> None:
        self.lost_times = self.back_times = 0

    def lost(self, cut: DomainError, patience: float) -> None:
        self.lost_times += 1

    def back(self) -> None:
        self.back_times += 1


async def cut_off(proxy: FaultProxy) -> None:
    """Until the client has seen the cut, it may still read what came before; then it connects again."""
    before = proxy.accepted
    await proxy.cut()
    await eventually(lambda: proxy.accepted > before)


async def test_a_client_whose_connection_is_cut_after_each_of_200_events_misses_and_repeats_none(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resuming, "FIRST_WAIT", 0.01)  # else 200 of them would be half a minute
    losses, cuts = Losses(), 0
    async with watched_runner(lab) as runner, on_the_wire(runner.core) as address:
        experiment_id = await held(runner, lab)
        async with (
            fault_proxy(int(address.rpartition(":")[2])) as proxy,
            connected(proxy.address, listener=losses) as client,
            aclosing(client.watch(experiment_id, token_of(experiment_id, 0))) as watch,
        ):
            heard: list[WatchMessage] = []
            async for message in watch:
                heard.append(message)
                if message.event is None or cuts == CUTS:
                    continue
                # Of each ten events, five come before a cut, to be lost on their way, and five while nobody listens.
                if cuts % 10 == 0:
                    await runner.append(experiment_id, 5)
                await cut_off(proxy)
                cuts += 1
                if cuts % 10 == 5:
                    await runner.append(experiment_id, 5)
                if cuts == CUTS:
                    lab.model.go.set()
    numbers, end = seqs(heard), heard[-1].terminal
    with capsys.disabled():
        print(
            f"\na client heard {len(numbers)} events over {proxy.accepted} connections: {cuts} were cut, each after an"
            f" event, and it went on {losses.back_times} times"
        )
    assert cuts == losses.lost_times == losses.back_times == CUTS
    assert end is not None
    assert [message for message in heard if message.terminal] == [heard[-1]]
    assert numbers == list(range(1, end.event_seq + 1))
    assert len(numbers) > CUTS
    assert end.state is ExperimentState.COMPLETED


async def test_a_watch_goes_on_from_the_token_of_each_event_without_a_gap_or_a_repeat(lab: Lab) -> None:
    async with watched_runner(lab) as runner, on_the_wire(runner.core) as address:
        async with own_connections(address, 1) as (client,):
            created = await client.create(experiment("{{ input.n }}", rows=ROWS, limits={"max_concurrency": 4}))
            heard: list[int] = []
            token, watches, end = token_of(created.experiment_id, 0), 0, None
            while end is None:
                async with aclosing(client.watch(created.experiment_id, token)) as watch:
                    watches += 1
                    async for message in watch:
                        token, end = message.resume_token, message.terminal
                        if message.event is not None:
                            heard.append(message.event.event_seq)
                            break
    assert watches > 200
    assert heard == list(range(1, end.event_seq + 1))
    assert (end.state, end.counts.completed) == (ExperimentState.COMPLETED, len(ROWS))


async def test_many_watchers_at_once_all_see_the_same(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        created = await runner.core.create(experiment("{{ input.n }}", rows=ROWS))
        token = token_of(created.experiment_id, 0)
        all_heard = await asyncio.gather(*(watched(runner.core, created.experiment_id, token) for _ in range(20)))
    for messages in all_heard:
        assert seqs(messages) == list(range(1, messages[-1].event_seq + 1))
        assert [message for message in messages if message.terminal] == [messages[-1]]
        assert messages[-1].terminal is not None


async def test_a_watch_of_some_kinds_goes_on_from_its_bookmark_and_misses_nothing(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        experiment_id = await held(runner, lab)
        watch = runner.core.watch(experiment_id, kinds=["run.waiting"], bookmark_interval=0.2)
        first = await anext(watch)
        await runner.append(experiment_id, 300)
        async for message in watch:
            assert message.bookmark is not None
            if message.event_seq == first.event_seq + 300:
                break
        assert message.resume_token == token_of(experiment_id, first.event_seq + 300)
        await watch.aclose()
        await runner.append(experiment_id, 2, kind="run.waiting")
        await runner.append(experiment_id, 5)
        lab.model.go.set()
        rest = [m async for m in runner.core.watch(experiment_id, message.resume_token, ["run.waiting"])]
        assert seqs(rest) == [first.event_seq + 301, first.event_seq + 302]
        assert rest[-1].terminal is not None


async def test_bookmarks_come_between_events_where_they_are_asked_for_often(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        experiment_id = await held(runner, lab)
        async with aclosing(runner.core.watch(experiment_id, bookmark_interval=0.2)) as watch:
            first = await anext(watch)
            heard: list[WatchMessage] = []
            while not any(message.bookmark for message in heard[1:-1]):
                await runner.append(experiment_id, 1)
                heard.append(await anext(watch))
    told = seqs(heard)
    assert told == list(range(first.event_seq + 1, first.event_seq + 1 + len(told)))
    for before, message in pairwise([first, *heard]):
        assert message.resume_token == token_of(experiment_id, message.event_seq)
        if message.event is None:
            assert message.bookmark is not None
            assert message.event_seq == before.event_seq, "a bookmark is of what was told before it"


async def test_a_watcher_with_an_old_token_passes_the_old_end_and_goes_on_to_the_new_one(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        experiment_id = await held(runner, lab)
        await runner.core.cancel(experiment_id)
        first_end = await ended(runner.core, experiment_id)
        assert first_end.state is ExperimentState.CANCELLED
        lab.model.go.set()
        await runner.core.resume(experiment_id)
        messages = await watched(runner.core, experiment_id, token_of(experiment_id, 0))
        kinds = [message.event.kind for message in messages if message.event]
        assert kinds.count("experiment.cancelled") == kinds.count("experiment.completed") == 1
        terminals = [message.terminal for message in messages if message.terminal]
        assert [(end.state, end.generation) for end in terminals] == [(ExperimentState.COMPLETED, 2)]
        assert seqs(messages) == list(range(1, messages[-1].event_seq + 1))


async def test_a_tail_that_missed_a_resume_does_not_end_a_new_watch_with_the_old_end(lab: Lab) -> None:
    async with watched_runner(lab, Hub(NEVER)) as runner, watched_runner(lab) as other:
        experiment_id = await held(runner, lab)
        await runner.core.cancel(experiment_id)
        end = await ended(runner.core, experiment_id)
        slow = runner.core.watch(experiment_id, token_of(experiment_id, 0))
        await anext(slow)  # its tail has read the end, and stays as long as it does
        await other.core.resume(experiment_id)
        watch = runner.core.watch(experiment_id, token_of(experiment_id, end.event_seq + 1))
        following = asyncio.ensure_future(_all(watch))
        lab.model.go.set()
        await ended(other.core, experiment_id)
        runner.hub.advanced(experiment_id)
        messages = await following
        assert messages[-1].terminal is not None
        assert (messages[-1].terminal.generation, messages[-1].terminal.state) == (2, ExperimentState.COMPLETED)
        assert [m async for m in slow][-1].terminal == messages[-1].terminal


async def test_changes_after_the_end_come_before_the_terminal_message(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        created = await runner.core.create(experiment("x"))
        end = await ended(runner.core, created.experiment_id)
        await runner.append(created.experiment_id, 1, kind="experiment.updated")
        messages = await watched(runner.core, created.experiment_id, token_of(created.experiment_id, end.event_seq))
        assert [m.event.kind if m.event else "terminal" for m in messages] == ["experiment.updated", "terminal"]


async def test_an_experiment_that_is_deleted_under_a_watch_is_not_found(lab: Lab) -> None:
    async with watched_runner(lab) as runner, on_the_wire(runner.core) as address:
        created = await runner.core.create(experiment("{{ input.n }}", rows=ROWS))
        await ended(runner.core, created.experiment_id)
        watching = Watching(runner.database, runner.hub, SystemClock(), ring_events=10)
        slow = watching.watch(created.experiment_id, token_of(created.experiment_id, 0))
        await anext(slow)
        await runner.core.delete(created.experiment_id)
        with pytest.raises(ExperimentNotFound):
            await _all(slow)
        async with own_connections(address, 1) as (client,):
            with pytest.raises(ExperimentNotFound):
                await anext(client.watch(created.experiment_id))


async def test_a_watch_that_only_hears_of_the_deletion_is_not_left_waiting(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        experiment_id = await held(runner, lab)
        elsewhere = Hub(NEVER)
        watch = Watching(runner.database, elsewhere, SystemClock()).watch(experiment_id)
        await anext(watch)
        waits = asyncio.ensure_future(anext(watch))
        await eventually(lambda: runner.database.reads["news_after"])
        await runner.core.cancel(experiment_id)
        await ended(runner.core, experiment_id)
        await runner.core.delete(experiment_id)
        elsewhere.heard([experiment_id], [])
        with pytest.raises(ExperimentNotFound):
            await waits


async def test_watches_end_without_an_end_when_the_runner_drains_and_go_on_at_the_next(lab: Lab) -> None:
    async with watched_runner(lab, Hub(NEVER)) as runner:
        experiment_id = await held(runner, lab)
        watches = [runner.core.watch(experiment_id), runner.core.watch(experiment_id, kinds=["run.failed"])]
        tokens = [(await anext(watch)).resume_token for watch in watches]
        rest = [asyncio.ensure_future(_all(watch)) for watch in watches]
        await eventually(lambda: runner.database.reads["news_after"] >= 1)
        runner.hub.drain()
        for messages in await asyncio.gather(*rest):
            assert not [message for message in messages if message.terminal]
    lab.model.go.set()
    async with watched_runner(lab) as runner:
        for token in tokens:
            messages = await watched(runner.core, experiment_id, token)
            assert messages[-1].terminal is not None


async def _all(watch: object) -> list[WatchMessage]:
    return [message async for message in watch]  # type: ignore[attr-defined]


async def test_slow_watchers_are_caught_up_from_sql_and_miss_nothing(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        experiment_id = await held(runner, lab)
        first = (await runner.core.get(experiment_id)).event_seq
        watching = Watching(runner.database, runner.hub, SystemClock(), ring_events=10)
        watches = [watching.watch(experiment_id) for _ in range(3)]
        heard: list[list[int]] = [[] for _ in watches]
        for watch in watches:
            await anext(watch)
        for _ in range(30):
            await runner.append(experiment_id, 25)
            for number, watch in enumerate(watches):  # one as fast as they come, one half as fast, one hardly at all
                for _ in range((25, 12, 1)[number]):
                    message = await anext(watch)
                    assert message.event is not None
                    heard[number].append(message.event_seq)
        lab.model.go.set()
        for number, watch in enumerate(watches):
            messages = [message async for message in watch]
            assert messages[-1].terminal is not None
            heard[number] += seqs(messages)
        assert runner.database.reads["page_after"] > 0
        last = (await runner.core.get(experiment_id)).event_seq
    for numbers in heard:
        assert numbers == list(range(first + 1, last + 1))


@pytest.mark.parametrize("after_a_read", [False, True])
async def test_an_unfiltered_watcher_that_joins_filtered_ones_gets_every_kind(lab: Lab, after_a_read: bool) -> None:
    async with watched_runner(lab) as runner:
        experiment_id = await held(runner, lab)
        watching = Watching(runner.database, runner.hub, SystemClock())
        failures = watching.watch(experiment_id, kinds=["run.failed"], bookmark_interval=0.2)
        start = (await anext(failures)).event_seq
        await runner.append(experiment_id, 40)
        while after_a_read and (await anext(failures)).event_seq < start + 40:
            pass
        following = asyncio.ensure_future(_all(failures))
        everything = watching.watch(experiment_id, token_of(experiment_id, start))
        heard = [(await anext(everything)).event_seq for _ in range(40)]
        await runner.append(experiment_id, 1, kind="run.failed")
        lab.model.go.set()
        heard += seqs(await _all(everything))
        assert heard == list(range(start + 1, heard[-1] + 1))
        assert seqs(await following) == [start + 41]


async def test_a_token_of_another_experiment_or_of_the_future_is_refused(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        created = await runner.core.create(experiment("x"))
        end = await ended(runner.core, created.experiment_id)
        for token in ("nonsense", token_of("other", 1), token_of(created.experiment_id, end.event_seq + 1)):
            with pytest.raises(ResumeTokenInvalid):
                await anext(runner.core.watch(created.experiment_id, token))
        (only,) = await watched(runner.core, created.experiment_id, token_of(created.experiment_id, end.event_seq))
        assert only.terminal == end


async def test_when_the_database_does_not_answer_every_watcher_hears_it_and_the_next_watch_goes_on(lab: Lab) -> None:
    async with watched_runner(lab, Hub(NEVER)) as runner:
        experiment_id = await held(runner, lab)
        away = Hub(NEVER)
        database = FailingDatabase(lab.database_url)
        watching = Watching(database, away, SystemClock())
        watches = [watching.watch(experiment_id) for _ in range(5)]
        for watch in watches:
            token = (await anext(watch)).resume_token
        waits = [asyncio.ensure_future(anext(watch)) for watch in watches]
        await eventually(lambda: database.reads["news_after"])
        database.fails = True
        away.advanced(experiment_id)
        for wait in waits:
            with pytest.raises(StoreUnavailable):
                await wait
        database.fails = False
        await runner.append(experiment_id, 1)
        again = watching.watch(experiment_id, token)
        assert (await anext(again)).event is not None
        await again.aclose()
        database.close()


class FailingDatabase(CountingDatabase):
    fails = False

    async def read(self, fn: Callable[[sa.Connection], T], **settings: float) -> T:
        if self.fails:
            raise StoreUnavailable("the database does not answer: gone")
        return await super().read(fn, **settings)


def test_a_watch_that_nobody_closes_ends_quietly_with_the_loop(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    left: list[object] = []

    async def leave_a_watch() -> None:
        lab.model = ScriptedModel(hold=True)
        async with watched_runner(lab) as runner:
            experiment_id = await held(runner, lab)
            watch = runner.core.watch(experiment_id, token_of(experiment_id, 0))
            left.append(watch)
            await anext(watch)

    asyncio.run(leave_a_watch())
    assert left
    assert not [record for record in caplog.records if record.name == "asyncio"]
