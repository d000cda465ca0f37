"""Events that are no longer kept, and events by the page, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial

import pytest
import sqlalchemy as sa
from runner_lab import Lab, ended, experiment, watched
from watch_lab import WatchedRunner, on_the_wire, own_connections, seqs, watched_runner

from promptlooper.clock import SystemClock
from promptlooper.errors import ExperimentNotFound, InvalidArgument, PageTokenInvalid, ResumeTokenExpired
from promptlooper.experiment import ExperimentState
from promptlooper.run import Event
from promptlooper.runner.core import RunnerCore
from promptlooper.runner.events.retention import Retention
from promptlooper.runner.events.watching import Watching, token_of
from promptlooper.runner.store import event_log
from promptlooper.runner.store.models import deleted, relay
from promptlooper.testing.eventually import eventually

HOUR = 3_600.0


async def held(runner: WatchedRunner, lab: Lab) -> tuple[str, int]:
    """An experiment whose one run waits for the model, and its last event."""
    lab.model.go.clear()
    lab.model.called.clear()
    created = await runner.core.create(experiment("x"))
    await lab.model.called.wait()
    return created.experiment_id, (await runner.core.get(created.experiment_id)).event_seq


def retention(runner: WatchedRunner, keep: float = HOUR, *, relayed: bool = False) -> Retention:
    return Retention(runner.database, SystemClock(), keep, relayed=relayed)


async def first_kept(runner: WatchedRunner, experiment_id: str) -> int:
    return await runner.database.read(partial(event_log.first_event_seq, experiment_id=experiment_id))


async def held_long(runner: WatchedRunner, lab: Lab) -> tuple[str, int]:
    """The same, where that was long ago."""
    experiment_id, start = await held(runner, lab)
    make_old = sa.text("UPDATE events SET time_us = 1 WHERE experiment_id = :x")
    await runner.database.write(lambda c: c.execute(make_old, {"x": experiment_id}))
    return experiment_id, start


async def old_log(runner: WatchedRunner, lab: Lab) -> tuple[str, int]:
    """An experiment whose events up to the second number returned are two hours old; 50 younger ones follow."""
    experiment_id, start = await held_long(runner, lab)
    await runner.append(experiment_id, 2_500, age=2 * HOUR)
    await runner.append(experiment_id, 50)
    return experiment_id, start + 2_500


async def test_old_events_go_and_who_asks_for_them_is_told_what_there_is(lab: Lab) -> None:
    async with watched_runner(lab) as runner, on_the_wire(runner.core) as address:
        experiment_id, old = await old_log(runner, lab)
        await retention(runner).clean()
        assert await first_kept(runner, experiment_id) == old + 1
        async with own_connections(address, 1) as (client,):
            for asked in (0, old - 1):
                with pytest.raises(ResumeTokenExpired) as caught:
                    await anext(client.watch(experiment_id, token_of(experiment_id, asked)))
                assert caught.value.metadata["earliest_event_seq"] == str(old + 1)
                with pytest.raises(ResumeTokenExpired) as caught:
                    await client.list_events(experiment_id, after_event_seq=asked)
                assert caught.value.metadata["earliest_event_seq"] == str(old + 1)
            rest = (await client.list_events(experiment_id, after_event_seq=old)).events
            assert [event.event_seq for event in rest] == list(range(old + 1, old + 51))
            lab.model.go.set()
            messages = [message async for message in client.watch(experiment_id, token_of(experiment_id, old))]
        assert seqs(messages) == list(range(old + 1, messages[-1].event_seq + 1))
        assert messages[-1].terminal is not None
        # The turns that ended it did not bring the old numbers back.
        assert await first_kept(runner, experiment_id) == old + 1


async def test_when_all_events_are_gone_the_last_token_is_still_good_and_older_ones_are_not(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        created = await runner.core.create(experiment("x"))
        end = await ended(runner.core, created.experiment_id)
        await retention(runner, keep=1e-6).clean()
        assert await first_kept(runner, created.experiment_id) == end.event_seq + 1
        (last,) = await watched(runner.core, created.experiment_id, token_of(created.experiment_id, end.event_seq))
        assert last.terminal is not None
        with pytest.raises(ResumeTokenExpired) as caught:
            await watched(runner.core, created.experiment_id, token_of(created.experiment_id, end.event_seq - 1))
        assert caught.value.metadata == {"earliest_event_seq": str(end.event_seq + 1)}
        assert [m.snapshot or m.terminal for m in await watched(runner.core, created.experiment_id)]
        assert (await runner.core.list_events(created.experiment_id, end.event_seq)).events == ()


async def test_events_that_go_while_a_slow_watcher_is_caught_up_are_missed_aloud(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        experiment_id, start = await held_long(runner, lab)
        watching = Watching(runner.database, runner.hub, SystemClock(), ring_events=10)
        slow = watching.watch(experiment_id)
        failures = watching.watch(experiment_id, kinds=["run.failed"])
        await anext(slow)
        await runner.append(experiment_id, 1_000, age=2 * HOUR)
        heard = [(await anext(slow)).event_seq for _ in range(5)]
        await anext(failures)
        await runner.append(experiment_id, 20)
        await eventually(lambda: runner.database.reads["news_after"] >= 2)
        await retention(runner).clean()

        async def hear_on() -> None:
            async for message in slow:
                heard.append(message.event_seq)

        with pytest.raises(ResumeTokenExpired) as caught:
            await hear_on()
        assert heard == list(range(start + 1, heard[-1] + 1))
        assert caught.value.metadata == {"earliest_event_seq": str(start + 1_001)}
        following = asyncio.ensure_future(_rest(failures))
        lab.model.go.set()
        assert await following == []


async def _rest(watch: object) -> list[int]:
    return seqs([message async for message in watch])  # type: ignore[attr-defined]


async def test_an_event_out_of_time_order_keeps_those_after_it(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        experiment_id, start = await held(runner, lab)
        await runner.append(experiment_id, 5)
        await runner.append(experiment_id, 5, age=2 * HOUR)
        await retention(runner).clean()
        assert await first_kept(runner, experiment_id) == 1
        assert len((await runner.core.list_events(experiment_id)).events) == start + 10


async def test_what_nats_was_not_told_of_is_kept_where_it_must_be(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        experiment_id, old = await old_log(runner, lab)
        await retention(runner, relayed=True).clean()
        assert await first_kept(runner, experiment_id) == 1
        told = sa.update(relay).where(relay.c.experiment_id == experiment_id).values(published_seq=1_700)
        await runner.database.write(lambda c: c.execute(told))
        await retention(runner, relayed=True).clean()
        assert await first_kept(runner, experiment_id) == 1_701
        await retention(runner).clean()
        assert await first_kept(runner, experiment_id) == old + 1


async def test_retention_runs_by_itself_and_0_keeps_for_ever(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        experiment_id, old = await old_log(runner, lab)
        await retention(runner, keep=0).clean()
        assert await first_kept(runner, experiment_id) == 1
        async with retention(runner, keep=10).running():
            await eventually(lambda: _is_first(runner, experiment_id, old + 1))


async def _is_first(runner: WatchedRunner, experiment_id: str, event_seq: int) -> bool:
    return await first_kept(runner, experiment_id) == event_seq


async def test_what_is_left_of_a_deleted_experiment_goes_after_a_week_when_nats_knows(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        created = await runner.core.create(experiment("x"))
        await ended(runner.core, created.experiment_id)
        await runner.core.delete(created.experiment_id)
        await retention(runner, keep=0).clean()
        await runner.core.delete(created.experiment_id)  # it is known that there was one
        week_ago = sa.update(deleted).values(deleted_us=deleted.c.deleted_us - 8 * 24 * 3600 * 1_000_000)
        await runner.database.write(lambda c: c.execute(week_ago))
        await retention(runner, keep=0, relayed=True).clean()
        await runner.core.delete(created.experiment_id)
        await retention(runner, keep=0).clean()
        with pytest.raises(ExperimentNotFound):
            await runner.core.delete(created.experiment_id)


async def all_pages(core: RunnerCore, experiment_id: str, page_size: int, **asked: object) -> list[list[Event]]:
    pages: list[list[Event]] = []
    token = ""
    while True:
        page = await core.list_events(experiment_id, page_size=page_size, page_token=token, **asked)
        pages.append(list(page.events))
        token = page.next_page_token
        if not token:
            return pages


async def test_events_are_listed_by_the_page_from_anywhere_and_by_kind(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        created = await runner.core.create(experiment("{{ input.n }}", rows=[{"n": n} for n in range(60)]))
        end = await ended(runner.core, created.experiment_id)
        every = await all_pages(runner.core, created.experiment_id, 0)
        assert [len(page) for page in every[:-1]] == [50] * (len(every) - 1)
        heard = await watched(runner.core, created.experiment_id, token_of(created.experiment_id, 0))
        assert [event for page in every for event in page] == [m.event for m in heard if m.event]
        (rest,) = await all_pages(runner.core, created.experiment_id, 5_000, after_event_seq=100)
        assert [event.event_seq for event in rest] == list(range(101, end.event_seq + 1))
        completed = await all_pages(runner.core, created.experiment_id, 25, kinds=["run.completed"])
        assert [len(page) for page in completed] == [25, 25, 10]
        assert {event.kind for page in completed for event in page} == {"run.completed"}
        (exactly,) = await all_pages(runner.core, created.experiment_id, 60, kinds=["run.completed"])
        assert exactly == [event for page in completed for event in page]
        assert await all_pages(runner.core, created.experiment_id, 5, after_event_seq=end.event_seq + 7) == [[]]
        assert await all_pages(runner.core, created.experiment_id, 5, kinds=["run.rescored"]) == [[]]


async def test_a_page_of_events_is_bounded_in_count_and_bytes(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        experiment_id, _ = await held(runner, lab)
        await runner.append(experiment_id, 2_200)
        assert [len(page) for page in await all_pages(runner.core, experiment_id, 100_000)][:2] == [1_000, 1_000]
        long = sa.text("UPDATE events SET detail_json = :long WHERE experiment_id = :x AND event_seq BETWEEN 4 AND 150")
        detail = '{"variant_id": "%s", "repeat": 0}' % ("x" * 60_000)
        await runner.database.write(lambda c: c.execute(long, {"long": detail, "x": experiment_id}))
        page = await runner.core.list_events(experiment_id, page_size=1_000)
        assert 40 < len(page.events) < 56
        async with on_the_wire(runner.core) as address, own_connections(address, 1) as (client,):
            following = await client.list_events(experiment_id, page_size=1_000, page_token=page.next_page_token)
        assert following.events[0].event_seq == page.events[-1].event_seq + 1


async def test_what_can_not_be_listed_is_refused(lab: Lab) -> None:
    async with watched_runner(lab) as runner:
        created = await runner.core.create(experiment("x"))
        await ended(runner.core, created.experiment_id)
        page = await runner.core.list_events(created.experiment_id, page_size=1)
        with pytest.raises(PageTokenInvalid):
            await runner.core.list_events(created.experiment_id, page_token=page.next_page_token, kinds=["run.failed"])
        with pytest.raises(InvalidArgument):
            await runner.core.list_events(created.experiment_id, after_event_seq=-1)
        with pytest.raises(InvalidArgument):
            await runner.core.list_events(created.experiment_id, page_size=-1)
        with pytest.raises(ExperimentNotFound):
            await runner.core.list_events("nothing")


async def test_a_watch_of_a_running_experiment_is_told_when_it_stood_still_for_too_long(lab: Lab) -> None:
    async with watched_runner(lab) as runner, on_the_wire(runner.core) as address:
        experiment_id, old = await old_log(runner, lab)
        async with own_connections(address, 1) as (client,):
            async with aclosing(client.watch(experiment_id, token_of(experiment_id, 0))) as watch:
                heard = (await anext(watch)).event_seq
            await retention(runner).clean()
            with pytest.raises(ResumeTokenExpired):
                await anext(client.watch(experiment_id, token_of(experiment_id, heard)))
            state = (await anext(client.watch(experiment_id))).snapshot
            assert state is not None
            assert (state.state, state.event_seq) == (ExperimentState.RUNNING, old + 50)
