"""A Runner in a process of its own, which makes events when told to on stdin and says its memory on stdout.

    python watch_server.py DATABASE_URL FOLDER LOOK_AGAIN

It prints `{"address": …, "experiment_id": …}`, and an answer to each line: `COUNT PADDING` commits events, `end` lets
the experiment end, `cost` does nothing. The answer is its memory, its reads of SQL so far, and its tails now.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import psutil
from runner_lab import Lab, ScriptedModel, experiment
from watch_lab import on_the_wire, watched_runner

from promptlooper.runner.events.hub import Hub


def _say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


async def _serve(database_url: str, folder: Path, look_again: float) -> None:
    lab = Lab(database_url, folder, ScriptedModel(hold=True))
    async with watched_runner(lab, Hub(look_again)) as runner, on_the_wire(runner.core, runner.hub) as address:
        created = await runner.core.create(experiment("x"))
        await lab.model.called.wait()
        _say(address=address, experiment_id=created.experiment_id)
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if line == "end":
                lab.model.go.set()
            elif line != "cost":
                count, padding = map(int, line.split())
                await runner.append(created.experiment_id, count, padding=padding)
            tails = [task for task in asyncio.all_tasks() if task.get_name().startswith("tail of")]
            _say(rss=psutil.Process().memory_info().rss, reads=runner.database.reads, tails=len(tails))


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
