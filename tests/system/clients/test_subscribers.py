"""The example subscribers: they count live, replay, and need no more than permissions.conf allows them."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import nats
import pytest
from runner_lab import Lab, ended, experiment

from promptlooper.backing import NatsServer
from promptlooper.runner.events.relay import STREAM
from promptlooper.runner.store.migrate import upgrade
from promptlooper.v1 import runner_service_pb2 as pb
from promptlooper.v1.runner_service_pb2_grpc import RunnerServiceStub

if TYPE_CHECKING:
    from .conftest import GatedStack

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
SUBSCRIBERS = Path(__file__).parents[3] / "examples" / "subscribers"
PASSWORDS = {"RUNNER_PASSWORD": "for-runners", "DASHBOARD_PASSWORD": "for-dashboards"}
EXPERIMENT = """\
name: counted
inputs: [1, 2, 3]
model: openai/any
prompt: "count {{ input }}"
cache: {mode: "off"}
"""


@pytest.fixture(params=["python", "node"])
def words(request: pytest.FixtureRequest, subscriber_in_node: Callable[[], Path]) -> Sequence[str]:
    if request.param == "python":
        return (sys.executable, str(SUBSCRIBERS / "python/counter.py"))
    return ("node", str(subscriber_in_node()))


@asynccontextmanager
async def counting(words: Sequence[str], *options: str, **env: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *words, *options, env={**os.environ, **env}, stdout=PIPE, stderr=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line_with(process: Process, wanted: str) -> str:
    assert process.stdout is not None
    while raw := await process.stdout.readline():
        if wanted in raw.decode():
            return raw.decode().strip()
    raise AssertionError((await process.communicate())[1].decode())


async def test_subscriber_counts_live_and_replays(words: Sequence[str], stack: GatedStack) -> None:
    async with grpc.aio.insecure_channel(stack.server) as channel:
        runner = RunnerServiceStub(channel)
        request = pb.CreateExperimentRequest(source=pb.ExperimentSource(text=EXPERIMENT))
        experiment_id = (await runner.CreateExperiment(request)).experiment.experiment_id
        nats_url = await stack.nats_url()
        async with counting(words, "--experiment", experiment_id, "--until-ended", NATS_URL=nats_url) as live:
            await line_with(live, "3 running, 0 waiting, 0 completed")
            stack.release(1)
            await line_with(live, "2 running, 0 waiting, 1 completed")
            stack.release(2)
            await line_with(live, "COMPLETED: 0 running, 0 waiting, 3 completed, 0 failed, 0 cancelled")
            assert await live.wait() == 0
        stored = await runner.ListEvents(pb.ListEventsRequest(experiment_id=experiment_id))

    # From its last message in the stream on, only the end is told.
    client = await nats.connect(nats_url)
    last = await client.jetstream().get_last_msg(STREAM, f"promptlooper.v1.events.*.{experiment_id}.>")
    await client.close()
    options = ("--experiment", experiment_id, "--until-ended", "--from", str(last.seq))
    async with counting(words, *options, NATS_URL=nats_url) as replay:
        out, err = await replay.communicate()
    assert out.decode().splitlines() == [
        f"{experiment_id} COMPLETED: 0 running, 0 waiting, 0 completed, 0 failed, 0 cancelled"
        f" (event {len(stored.events)})"
    ], err.decode()


async def test_wrong_start_of_a_subscriber_is_said(words: Sequence[str]) -> None:
    async with counting(words, "--from", "yesterday") as wrong:
        out, err = await wrong.communicate()
    assert (wrong.returncode, out) == (2, b"")
    assert "'yesterday'" in err.decode()
    assert "usage: " in err.decode()


class GuardedNats(NatsServer):
    """NATS with the users of permissions.conf."""

    def _command(self) -> Sequence[str | Path]:
        command = super()._command()
        (self.data / "permissions.conf").write_text((SUBSCRIBERS / "permissions.conf").read_text())
        with (self.data / "nats.conf").open("a") as config:
            config.write("include permissions.conf\n")
        return command

    def url_of(self, user: str) -> str:
        return self.url.replace("//", f"//{user}:{PASSWORDS[f'{user.upper()}_PASSWORD']}@")


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GuardedNats]:
    for name, value in PASSWORDS.items():
        monkeypatch.setenv(name, value)
    server = GuardedNats(tmp_path, durable=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    url = f"sqlite:///{tmp_path / 'promptlooper.db'}"
    upgrade(url)
    return Lab(url, tmp_path)


async def test_subscriber_needs_only_what_permissions_allow(
    words: Sequence[str], lab: Lab, guarded: GuardedNats
) -> None:
    identity = {"NATS_URL": guarded.url, "NATS_USER": "dashboard", "NATS_PASSWORD": PASSWORDS["DASHBOARD_PASSWORD"]}
    async with lab.runner(nats_url=guarded.url_of("runner")) as runner:
        created = await runner.create(experiment("count {{ input.n }}", rows=[{"n": n} for n in range(3)]))
        done = await ended(runner, created.experiment_id)
        refusals = await refused(guarded)
        async with counting(words, "--until-ended", **identity) as replay:
            out, err = await replay.communicate()
    assert err == b""
    assert out.decode().splitlines()[-1] == (
        f"{created.experiment_id} COMPLETED: 0 running, 0 waiting, 3 completed, 0 failed, 0 cancelled"
        f" (event {done.event_seq})"
    )
    assert refusals == {"publish an event", "publish a hint", "hear hints", "hear other answers", "delete the stream"}


async def refused(server: GuardedNats) -> set[str]:
    """What a dashboard may not do, tried on the server, each on a connection of its own."""
    found: set[str] = set()
    tries = {
        "publish an event": lambda client: client.publish("promptlooper.v1.events.default.x.run.completed", b""),
        "publish a hint": lambda client: client.publish("promptlooper.v1.hints", b"{}"),
        "hear hints": lambda client: client.subscribe("promptlooper.v1.hints"),
        "hear other answers": lambda client: client.subscribe("_INBOX.>"),
        "delete the stream": lambda client: client.publish(f"$JS.API.STREAM.DELETE.{STREAM}", b""),
        "hear events": lambda client: client.subscribe("promptlooper.v1.events.>"),
    }
    for what, attempt in tries.items():

        async def violated(error: Exception, what: str = what) -> None:
            assert "permissions violation" in str(error).lower()
            found.add(what)

        client = await nats.connect(server.url_of("dashboard"), error_cb=violated, allow_reconnect=False)
        await attempt(client)
        # The first ping may overtake what was asked; the answer to the second comes after what the server says of it.
        await client.flush()
        await client.flush()
        await client.close()
    return found
