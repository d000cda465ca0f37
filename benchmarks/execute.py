"""What ExecuteRun costs over the plain Complete call of the Adapter that it makes.

`python -m benchmarks.execute`: a stack of its own, a provider of 0 ms, no cache; the same question by the Adapter's
Complete, its StreamComplete, and the Runner's ExecuteRun of a stored experiment. CPU is user + system of Runner and
Adapter; rounds are interleaved, and the least of each is printed, with the ratio to Complete.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.run import CLI, cpu_of, provider
from promptlooper.clients import runner as runners
from promptlooper.completion import CompletionRequest, Message
from promptlooper.rpc.client import open_channel
from promptlooper.sources import ExperimentSource, RunTarget
from promptlooper.v1 import adapter_service_pb2 as pb
from promptlooper.v1.adapter_service_pb2_grpc import AdapterServiceStub
from promptlooper.wire.completion import request_to_pb

CALLS, AT_ONCE, ROUNDS = 1_500, 50, 4
EXPERIMENT = """\
name: bench
model: openai/fast
params: {max_tokens: 16, temperature: 0}
prompt: "Capital of {{ input.country }}? This is question {{ input.n }} of a series; answer with one word."
inputs: [{country: France, n: 0}]
cache: {mode: "off"}
"""


def question(n: int) -> CompletionRequest:
    text = f"Capital of France? This is question {n} of a series; answer with one word."
    return CompletionRequest("openai/fast", (Message("user", text),), {"max_tokens": 16, "temperature": 0})


async def rounds(ask: Callable[[int], Awaitable[None]]) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(n: int) -> None:
        async with slots:
            await ask(n)

    await asyncio.gather(*(one(n) for n in range(CALLS)))


async def compared(parts: dict[str, dict[str, object]]) -> None:
    pids = [int(str(parts[name]["pid"])) for name in ("runner", "adapter")]
    async with (
        runners.connected(str(parts["runner"]["address"])) as runner,
        open_channel(str(parts["adapter"]["address"])) as channel,
    ):
        adapter = AdapterServiceStub(channel)
        stored = (await runner.create(ExperimentSource(EXPERIMENT))).experiment_id
        async for _ in runner.watch(stored):
            pass

        async def complete(n: int) -> None:
            await adapter.Complete(pb.CompleteRequest(request=request_to_pb(question(n))))

        async def stream(n: int) -> None:
            async for _ in adapter.StreamComplete(pb.StreamCompleteRequest(request=request_to_pb(question(n)))):
                pass

        async def execute(n: int) -> None:
            async for message in runner.execute_run(RunTarget(stored, row={"country": "France", "n": n}, has_row=True)):
                assert message.run is None or message.run.error is None, message.run

        kinds = {"Complete": complete, "StreamComplete": stream, "ExecuteRun": execute}
        least: dict[str, list[float]] = {}
        for name, ask in [(name, kinds[name]) for _ in range(ROUNDS + 1) for name in kinds]:
            before = [cpu_of(pid) for pid in pids]
            await rounds(ask)
            spent = [(cpu_of(pid) - was) / CALLS * 1e3 for pid, was in zip(pids, before, strict=True)]
            if name in least and sum(spent) >= sum(least[name]):
                continue
            least[name] = spent
    print(f"\n{CALLS:,} calls, {AT_ONCE} at once, provider 0 ms, the least of {ROUNDS + 1} rounds")
    for name, (of_runner, of_adapter) in least.items():
        total = of_runner + of_adapter
        ratio = total / sum(least["Complete"])
        print(
            f"  {name:<15} {total:.2f} ms CPU per call "
            f"(runner {of_runner:.2f}, adapter {of_adapter:.2f}): {ratio:.2f} times Complete"
        )


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="promptlooper-bench-") as folder, provider() as url:
        data = str(Path(folder, "up"))
        env = {**os.environ, "OPENAI_BASE_URL": url}
        up = [CLI, "up", "-d", "--port-base", "0", "--data", data]
        subprocess.run(up, env=env, check=True, stdout=subprocess.DEVNULL)
        try:
            told = subprocess.run([CLI, "status", "--json", "--data", data], check=True, capture_output=True)
            asyncio.run(compared({part["kind"]: part for part in json.loads(told.stdout)}))
        finally:
            subprocess.run([CLI, "down", "--data", data], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
