"""What clients and Runners do at awkward moments: each of these once went wrong."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
import sqlalchemy as sa
from runner_lab import Lab, Said, ended, experiment, exported

from promptlooper.backing import PostgresServer
from promptlooper.clock import SystemClock
from promptlooper.completion import CompletionRequest
from promptlooper.errors import ExperimentCancelled, ExperimentNotFound, ProviderRateLimited, ProviderRejected
from promptlooper.experiment import CacheMode, CachePolicy, ExperimentState
from promptlooper.run import RunState
from promptlooper.runner.core import RunnerCore
from promptlooper.runner.events.hub import Hub
from promptlooper.runner.events.watching import token_of
from promptlooper.runner.store import control
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.rows import microseconds
from promptlooper.testing.eventually import eventually
from promptlooper.testing.servers import drop_database, fresh_database

ROWS = [{"n": n} for n in range(4)]
ANEW = CachePolicy(CacheMode.OFF)


async def happened(runner: RunnerCore, experiment_id: str, kind: str, times: int = 1) -> None:
    async def seen() -> bool:
        return len((await runner.list_events(experiment_id, kinds=[kind])).events) == times

    await eventually(seen)


async def test_a_parked_run_gets_its_stage_s_time_anew_after_a_pause(lab: Lab) -> None:
    lab.model.say = lambda request: (
        ProviderRateLimited("slow down", retry_after=1.0, attempts=1)
        if lab.model.calls[request.messages[-1].content] == 1
        else "fine"
    )
    async with lab.runner() as runner:
        created = await runner.create(experiment("go", cache=ANEW, limits={"stage_timeout": 2.0}))
        name = created.experiment_id
        await happened(runner, name, "run.waiting")
        await runner.pause(name)
        # As if it had been paused for long: the stage's time is over.
        await runner._database.write(lambda c: c.exec_driver_sql("UPDATE runs SET deadline_us = 1"))
        await runner.resume(name)
        await ended(runner, name)
        (run,) = await exported(runner, name)
    assert run.state is RunState.COMPLETED


async def test_a_retried_run_does_not_wait_for_those_that_are_parked(lab: Lab) -> None:
    def say(request: CompletionRequest) -> str | Exception:
        text = request.messages[-1].content
        if lab.model.calls[text] > 1:
            return "fine"
        return ProviderRejected("no", attempts=1) if text == "0" else ProviderRateLimited("slow", retry_after=600.0)

    lab.model.say = say
    limits = {"max_concurrency": 2, "stage_timeout": 1_000.0}
    async with lab.runner() as runner:
        created = await runner.create(experiment("{{ input.n }}", rows=ROWS, cache=ANEW, limits=limits))
        name = created.experiment_id
        await happened(runner, name, "run.waiting", 3)
        await happened(runner, name, "run.failed")
        await runner.retry(name)
        await happened(runner, name, "run.completed")


async def test_many_experiments_that_wait_for_one_slot_do_not_each_take_it(lab: Lab) -> None:
    lab.model.go.clear()
    async with lab.runner(slots=4) as runner:
        large = await runner.create(experiment("large {{ input.n }}", rows=ROWS * 10, cache=ANEW))
        await eventually(lambda: lab.model.running == 4)
        small = [await runner.create(experiment(f"small {n}", cache=ANEW)) for n in range(6)]
        lab.model.go.set()
        for made in (*small, large):
            await ended(runner, made.experiment_id)
    assert lab.model.most_running == 4


async def test_an_experiment_that_failed_as_a_whole_is_resumed_and_not_retried(lab: Lab) -> None:
    def say(request: CompletionRequest) -> Said:
        if lab.model.calls.total() > 1:
            return "fine"
        lab.model.go.clear()  # the others are not over before it is paused
        return ProviderRejected("no", attempts=1)

    lab.model.say = say
    async with lab.runner() as runner:
        spec = experiment("{{ input.n }}", rows=ROWS, cache=ANEW, limits={"max_concurrency": 1})
        created = await runner.create(spec)
        name = created.experiment_id
        await happened(runner, name, "run.failed")
        await runner.pause(name)
        now_us = microseconds(SystemClock().now())
        await runner._database.write(partial(control.fail, experiment_id=name, reason="it can't be run", now_us=now_us))
        with pytest.raises(ExperimentCancelled):
            await runner.retry(name)
        lab.model.go.set()
        await runner.resume(name)
        done = await ended(runner, name)
    assert done.counts.completed + done.counts.failed == 4
    assert done.counts.cancelled == 0


async def test_a_runner_that_drains_hears_of_a_cancel(lab: Lab) -> None:
    lab.model.go.clear()
    async with lab.runner() as leaving, lab.runner() as other:
        created = await leaving.create(experiment("{{ input.n }}", rows=ROWS, cache=ANEW))
        await eventually(lambda: lab.model.running == 4)
        draining = asyncio.create_task(leaving.drain(600))
        await other.cancel(created.experiment_id)
        done = await ended(other, created.experiment_id)
        await draining
    assert (done.state, lab.model.running) == (ExperimentState.CANCELLED, 0)


async def test_a_watch_that_begins_after_a_retry_is_not_ended_by_what_a_slow_watcher_has_not_read(lab: Lab) -> None:
    broken = True
    lab.model.say = lambda request: ProviderRejected("no", attempts=1) if broken else "fine"
    async with lab.runner(hub=Hub(look_again=600.0)) as far, lab.runner() as near:
        created = await near.create(experiment("x", cache=ANEW))
        name = created.experiment_id
        first = await ended(near, name)
        slow = far.watch(name, token_of(name, 1))
        await anext(slow)
        broken = False
        lab.model.go.clear()
        await near.retry(name)
        following = asyncio.create_task(_last_generation(far, name, token_of(name, first.event_seq)))
        await far.pause(name)  # tells its hub, as a hint would
        await far.resume(name)
        lab.model.go.set()
        await ended(near, name)
        far._hub.advanced(name)
        assert await following == 3
        await slow.aclose()


async def _last_generation(runner: RunnerCore, experiment_id: str, token: str) -> int:
    messages = [message async for message in runner.watch(experiment_id, token)]
    assert messages[-1].terminal is not None
    return messages[-1].terminal.generation


async def test_a_create_that_is_repeated_gets_its_first_answer_also_when_the_adapter_is_gone(lab: Lab) -> None:
    async with lab.runner() as runner:
        spec = experiment("x", cache=ANEW)
        created = await runner.create(spec, "once")
        await ended(runner, created.experiment_id)

        async def gone(models: object) -> None:
            raise ProviderRejected("no Adapter")

        lab.model.check_models = gone  # type: ignore[method-assign, assignment]
        assert (await runner.create(spec, "once")).experiment_id == created.experiment_id
        await runner.delete(created.experiment_id)
        with pytest.raises(ExperimentNotFound):  # and not another experiment
            await runner.create(spec, "once")


async def test_a_runner_takes_the_runs_of_its_predecessor_at_once(lab: Lab) -> None:
    lab.model.go.clear()
    first = lab.runner(replica="runner-0", lease_ttl=600)
    before = await first.__aenter__()
    created = await before.create(experiment("{{ input.n }}", rows=ROWS, cache=ANEW, limits={"max_concurrency": 2}))
    await eventually(lambda: lab.model.running == 2)
    async with lab.runner(replica="another", lease_ttl=600) as other:
        assert (await other.get(created.experiment_id)).counts.running == 2  # theirs are let be
        async with lab.runner(replica="runner-0", lease_ttl=600) as after:
            lab.model.go.set()
            done = await ended(after, created.experiment_id)
    await first.__aexit__(None, None, None)
    assert done.counts.completed == 4


async def test_a_lock_whose_session_the_server_ended_is_not_held_any_more(postgres: PostgresServer) -> None:
    url = fresh_database(postgres)
    mine, theirs = Database(url), Database(url)
    end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7"
    try:
        async with mine.advisory_lock(7) as i_hold:
            assert await i_hold()
            async with theirs.advisory_lock(7) as they_hold:
                assert not await they_hold()
            await theirs.write(lambda c: c.execute(sa.text(end)))
            assert not await i_hold()
            async with theirs.advisory_lock(7) as they_hold:
                assert await they_hold()
    finally:
        mine.close()
        theirs.close()
        drop_database(postgres, url)
