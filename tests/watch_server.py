"""A Runner in a process of its own, which makes events when told to on stdin and says its memory on stdout.

    python watch_server.py DATABASE_URL FOLDER

It prints `{"address": …, "experiment_id": …}`, and an answer to each line: a number of events to commit, or `rss`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from pathlib import Path
from typing import Any

import psutil
from runner_lab import Lab, ScriptedModel, experiment
from watch_lab import on_the_wire, watched_runner


def _say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


async def _serve(database_url: str, folder: Path) -> None:
    lab = Lab(database_url, folder, ScriptedModel(hold=True))
    async with watched_runner(lab) as runner, on_the_wire(runner.core, runner.hub) as address:
        created = await runner.core.create(experiment("x"))
        await lab.model.called.wait()
        _say(address=address, experiment_id=created.experiment_id)
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if line == "end":
                lab.model.go.set()
            elif line != "rss":
                for _ in range(int(line) // 100):
                    await runner.append(created.experiment_id, 100)
            gc.collect()
            now = await runner.core.get(created.experiment_id)
            _say(rss=psutil.Process().memory_info().rss, event_seq=now.event_seq)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], Path(sys.argv[2])))
