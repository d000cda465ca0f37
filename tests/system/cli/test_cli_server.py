"""Commands that steer an experiment on a Runner, as processes of their own, over gRPC."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from runner_lab import Lab, ScriptedModel

from promptlooper.clock import SystemClock
from promptlooper.errors import ProviderRejected
from promptlooper.rpc.server import serving
from promptlooper.runner.events.retention import Retention
from promptlooper.runner.servicer import SERVICE_NAME, register
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.migrate import upgrade
from promptlooper.testing.eventually import eventually

EXPERIMENT = """\
inputs: [1, 2, 3, 4, 5, 6]
model: mock/m
prompt: "{{ input }}"
limits: {max_concurrency: 2}
cache: off
"""


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(hold=True)


@pytest.fixture
async def server(shell: Any, tmp_path: Path, model: ScriptedModel) -> AsyncIterator[str]:
    (tmp_path / "promptlooper.yaml").write_text(EXPERIMENT)
    url = f"sqlite:///{tmp_path / 'runner.db'}"
    upgrade(url)
    async with Lab(url, tmp_path, model).runner() as core:
        services = {SERVICE_NAME: partial(register, core=core)}
        async with serving("127.0.0.1:0", services, health_listen="127.0.0.1:0") as running:
            shell.env["PROMPTLOOPER_SERVER"] = f"127.0.0.1:{running.port}"
            yield shell.env["PROMPTLOOPER_SERVER"]


async def detached(shell: Any) -> str:
    started = await shell("run", "--detach")
    assert started.code == 0, started.err
    return str(started.out.strip())


async def state(shell: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await shell("show", "latest", "--json")).out)
    return found


async def last_event(shell: Any) -> int:
    lines = (await shell("events", "latest", "--json")).out.splitlines()
    return int(json.loads(lines[-1])["event_seq"])


async def test_paused_experiment_starts_nothing_until_it_is_resumed(
    shell: Any, server: str, model: ScriptedModel
) -> None:
    name = await detached(shell)
    await eventually(lambda: model.running == 2)
    paused = await shell("pause", "latest")
    assert paused.code == 0
    assert f"`promptlooper resume {name} --server {server}` goes on" in paused.err
    model.go.set()
    await eventually(lambda: model.running == 0)
    now = await state(shell)
    assert now["state"] == "PAUSED"
    assert sum(model.calls.values()) == 2
    assert (await shell("pause", name)).code == 0
    resumed = await shell("resume", name)
    assert resumed.code == 0, resumed.err
    assert "6 runs, 6 completed, 0 failed" in resumed.out
    assert set(model.calls.values()) == {1}


async def test_cancelled_experiment_goes_on_where_it_was(shell: Any, server: str, model: ScriptedModel) -> None:
    name = await detached(shell)
    await eventually(lambda: model.running == 2)
    assert (await shell("cancel", name)).code == 0
    await eventually(lambda: model.running == 0)
    watched = await shell("watch", name)
    assert (watched.code, "CANCELLED (USER)" in watched.out) == (1, True)
    model.go.set()
    followed = await shell("run", "--resume", "latest", "promptlooper.yaml", "--json", "-q")
    assert followed.code == 0, followed.err
    document = json.loads(followed.out)
    assert (document["generation"], document["counts"]["completed"]) == (2, 6)


async def test_update_lets_more_run_at_once(shell: Any, server: str, model: ScriptedModel) -> None:
    name = await detached(shell)
    await eventually(lambda: model.running == 2)
    updated = await shell("update", name, "-j", "5")
    assert updated.err == f"Experiment {name}: at most 5 runs at once.\n"
    await eventually(lambda: model.running == 5)
    refused = await shell("update", name, "--budget-usd", "3", "--json")
    assert refused.code == 2
    assert json.loads(refused.out)["error"]["reason"] == "INVALID_ARGUMENT"
    assert (await state(shell))["max_concurrency"] == 5
    model.go.set()
    events = await shell("events", name, "--kind", "experiment.updated")
    assert "experiment.updated  limits changed  at most 5 at once" in events.out


async def test_retry_runs_what_failed_again_and_only_once_per_request_id(
    shell: Any, server: str, model: ScriptedModel
) -> None:
    def fails_on_3(request: Any) -> Any:
        return ProviderRejected("no") if request.messages[-1].content == "3" else "fine"

    model.say = fails_on_3
    model.go.set()
    assert (await shell("run", "-q")).code == 1
    model.say = lambda request: "fine"
    for _ in range(2):
        retried = await shell("retry", "latest", "--detach", "--request-id", "once", "--json")
        assert retried.code == 0, retried.err
    followed = await shell("watch", "latest")
    assert followed.code == 0, followed.out
    assert (await state(shell))["generation"] == 2
    assert model.calls["3"] == 2
    assert sum(model.calls.values()) == 7


async def test_deleted_experiment_may_be_deleted_again(shell: Any, server: str, model: ScriptedModel) -> None:
    model.go.set()
    assert (await shell("run", "-q")).code == 0
    name = (await state(shell))["experiment_id"]
    assert (await shell("delete", name, "--yes")).code == 0
    again = await shell("delete", name, "--yes")
    assert (again.code, again.err) == (0, f"Experiment {name} was deleted before.\n")


async def test_events_are_those_that_watch_prints(shell: Any, server: str, model: ScriptedModel) -> None:
    name = await detached(shell)
    await eventually(lambda: model.running == 2)
    watch = await shell.start("watch", name, "--json")
    snapshot = json.loads(await watch.stdout.readline())
    model.go.set()
    out, _ = await watch.communicate()
    watched = [line["event"] for line in map(json.loads, out.splitlines()) if "event" in line]
    listed = await shell("events", name, "--after", str(snapshot["event_seq"]), "--json")
    assert [json.loads(line) for line in listed.out.splitlines()] == watched


async def test_events_that_are_no_longer_kept_are_named_and_the_others_printed(
    shell: Any, server: str, model: ScriptedModel, tmp_path: Path
) -> None:
    model.go.set()
    assert (await shell("run", "-q")).code == 0
    name, last = (await state(shell))["experiment_id"], await last_event(shell)
    database = Database(f"sqlite:///{tmp_path / 'runner.db'}")
    try:
        await Retention(database, SystemClock(), 1e-6, relayed=False).clean()
    finally:
        database.close()
    assert (await shell("update", name, "-j", "5")).code == 0
    kept = await shell("events", name, "--json")
    assert (kept.code, kept.err) == (0, f"Events before number {last + 1} of experiment {name} are no longer kept.\n")
    assert [json.loads(line)["event_seq"] for line in kept.out.splitlines()] == [last + 1]
    refused = await shell("events", name, "--after", "1", "--json")
    assert refused.code == 1
    assert json.loads(refused.out)["error"]["reason"] == "RESUME_TOKEN_EXPIRED"
    assert (await shell("events", name, "--after", str(last), "--json")).out == kept.out
