"""The released version and this one at work together, as in a rolling upgrade."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from fault_checks import Watched, answer_problems, check, event_problems, row_problems, told, watch_problems
from fault_lab import Backing, Node, answer_to, backing, priced, started
from fault_specs import three_stages
from fault_stream import whole_stream
from release_lab import OURS, Version, released

from promptlooper.clients.runner import connected
from promptlooper.experiment import CacheMode
from promptlooper.runner.store.migrate import HEAD, upgrade
from promptlooper.sources import RunTarget
from promptlooper.testing.provider import FakeProvider, ProviderRequest, Reply

RUNS, SLOTS = 30, 4
BEFORE = 30  # questions that are answered before the upgrade
RELEASED = "0002"  # the revision of 0.1.0
EXPERIMENT = """\
prompt: "once more {{ input }}"
inputs: [1, 2, 3]
model: openai/any
cache: off
scorers: [{contains: "{{ input }}"}]
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return released("0.1.0", tmp_path_factory.mktemp("0.1.0"))


def services(version: Version, name: str, backs: Backing, provider: FakeProvider, asker: str) -> Mapping[str, Node]:
    """All but the Runner. The provider knows the Adapter as `asker`."""
    asking = {"PROMPTLOOPER_PROVIDERS": priced(backs.folder, provider.base_url), "OPENAI_API_KEY": asker}
    remembering = {"PROMPTLOOPER_REDIS_URL": backs.redis.url, "PROMPTLOOPER_REDIS_TIMEOUT": "0.5"}
    settings = {"adapter": asking, "cache": remembering, "scorer": {}}
    return {kind: version.node(f"{name}-{kind}", kind, backs.folder, env) for kind, env in settings.items()}


def runner(version: Version, name: str, backs: Backing, asks: Mapping[str, Node]) -> Node:
    addresses = {f"PROMPTLOOPER_{kind.upper()}_ADDRESS": node.address for kind, node in asks.items()}
    backing = {"PROMPTLOOPER_DATABASE_URL": backs.postgres.url, "PROMPTLOOPER_NATS_URL": backs.nats.url}
    return version.node(name, "runner", backs.folder, {**backing, **addresses, "PROMPTLOOPER_SLOTS": str(SLOTS)})


def test_the_release_runs_its_own_code(release: Version) -> None:
    said = release.prints("-c", "import promptlooper.runner.app as it; print(it.__file__)")
    assert Path(said).is_relative_to(release.folder)


@pytest.mark.timeout(300)
async def test_both_versions_work_on_one_experiment_and_each_serves_the_other(release: Version) -> None:
    """The Runner of each version asks the Adapter, the Cache and the Scorer of the other. The old one is at work when
    the database is migrated, and stays when the new one comes."""
    go_on = asyncio.Event()

    async def answer(request: ProviderRequest) -> Reply:
        if len(provider.history) > BEFORE:
            await go_on.wait()
        return Reply(answer_to(request.question))

    async with FakeProvider(answer) as provider, backing(release.migrate) as backs:
        old = services(release, "old", backs, provider, "new-runner")
        new = services(OURS, "new", backs, provider, "old-runner")
        old_runner = runner(release, "old-runner", backs, new)
        new_runner = runner(OURS, "new-runner", backs, old)
        async with started([*old.values(), *new.values(), old_runner]), connected(old_runner.address) as client:
            created = await client.create(three_stages(RUNS, cache=CacheMode.READ_WRITE))
            watched = Watched()
            watching = asyncio.create_task(watched.follow(client.watch(created.experiment_id)))
            await provider.eventually(lambda it: it.open == SLOTS and len(it.history) == BEFORE + SLOTS)
            assert await asyncio.to_thread(upgrade, backs.postgres.url) == (RELEASED, HEAD)
            async with started([new_runner]):
                await provider.eventually(lambda it: it.open == 2 * SLOTS)
                go_on.set()
                await watching
                known = await told(client, created.experiment_id)
                check(watch_problems(watched, known.events), event_problems(known.events), row_problems(known))
                check(answer_problems(known.runs))
                assert all(run.passed for run in known.runs)
                assert {call.asker for call in provider.history} == {"old-runner", "new-runner"}
                assert provider.calls.total() == len(provider.calls) == 3 * RUNS
                numbers = await whole_stream(backs.nats.url, created.experiment_id, len(known.events))
                assert numbers == list(range(1, len(known.events) + 1))

                for each in (old_runner, new_runner):
                    await answers_are_found_again(each, provider)
                (backs.folder / "promptlooper.yaml").write_text(EXPERIMENT)
                for version, server in ((release, new_runner), (OURS, old_runner)):
                    words = ("run", "-q", str(backs.folder / "promptlooper.yaml"), "--server", server.address)
                    assert "3 runs, 3 completed, 0 failed" in await asyncio.to_thread(version, *words)
                await a_single_run_is_told_at_its_end(new_runner)
                await asyncio.to_thread(rows_are_the_same, release, created.experiment_id, old_runner, new_runner)

                assert await old_runner.terminate() == 0
                old_runner.start()
                assert await old_runner.ended() == 2
                assert old_runner.said(f"at revision '{HEAD}' and must be at '{RELEASED}'")


async def answers_are_found_again(runner: Node, provider: FakeProvider) -> None:
    """What the Runners of both have stored, under keys of their own making, by Caches of both, each of them finds."""
    asked = provider.calls.total()
    async with connected(runner.address) as client:
        created = await client.create(three_stages(RUNS, cache=CacheMode.READ_WRITE))
        await Watched().follow(client.watch(created.experiment_id))
        assert (await client.get(created.experiment_id)).counts.cached == RUNS
    assert provider.calls.total() == asked


async def a_single_run_is_told_at_its_end(new_runner: Node) -> None:
    """The old Adapter knows no deltas."""
    async with connected(new_runner.address) as client:
        target = RunTarget(three_stages(1, cache=CacheMode.OFF))
        heard = [message async for message in client.execute_run(target, 60.0)]
    run = heard[-1].run
    assert run is not None
    assert run.error is None
    told = [message.delta.text for message in heard if message.delta is not None]
    assert told == [stage.output for stage in run.stages]


def rows_are_the_same(release: Version, experiment_id: str, old_runner: Node, new_runner: Node) -> None:
    """For the command line of each version, with the Runner of the other."""
    rows = release("export", experiment_id, "--server", new_runner.address).splitlines()
    again = OURS("export", experiment_id, "--server", old_runner.address).splitlines()
    for row, same in zip(map(json.loads, rows), map(json.loads, again), strict=True):
        stages, later = row.pop("stages"), same.pop("stages")
        assert row.items() <= same.items()
        for stage, as_now in zip(stages, later, strict=True):
            assert stage | {"iteration": 0} == {key: as_now[key] for key in stage}  # it was null before for_each
