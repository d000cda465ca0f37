"""A server that goes away is spoken of while an experiment on it is followed, and so is its return."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

from runner_lab import Lab, ScriptedModel

from promptlooper.rpc.server import serving
from promptlooper.runner.servicer import SERVICE_NAME, register
from promptlooper.runner.store.migrate import upgrade
from promptlooper.testing.eventually import eventually

EXPERIMENT = "inputs: [1, 2]\nmodel: mock/m\nprompt: '{{ input }}'\ncache: off\n"


async def heard(process: asyncio.subprocess.Process, said: str) -> None:
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while said not in (line := (await process.stderr.readline()).decode()):
            assert line, f"{said!r} was never said"


async def test_who_follows_hears_that_the_connection_is_lost_and_back(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "promptlooper.yaml").write_text(EXPERIMENT)
    url = f"sqlite:///{tmp_path / 'runner.db'}"
    upgrade(url)
    model = ScriptedModel(hold=True)
    async with Lab(url, tmp_path, model).runner() as core:
        served = partial(
            serving, services={SERVICE_NAME: partial(register, core=core)}, health_listen="127.0.0.1:0", grace=0.1
        )
        async with served("127.0.0.1:0") as first:
            address = shell.env["PROMPTLOOPER_SERVER"] = f"127.0.0.1:{first.port}"
            run = await shell.start("run", "--json")
            await eventually(lambda: model.running == 2)
            watch = await shell.start("watch", "latest", "--json")
            assert b"snapshot" in await watch.stdout.readline()
            await heard(run, "0/2 runs")
        for process in (run, watch):
            await heard(process, f"The connection to {address} is lost; trying again for up to 60 s.\n")
        async with served(address):
            for process in (run, watch):
                await heard(process, f"The connection to {address} is back.\n")
            model.go.set()
            out, _ = await run.communicate()
            assert (run.returncode, json.loads(out)["counts"]["completed"]) == (0, 2)
            watched, _ = await watch.communicate()
            assert watch.returncode == 0
            assert "terminal" in json.loads(watched.splitlines()[-1])
