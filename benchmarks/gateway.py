"""What a completion costs in the Adapter, beside a Portkey gateway; and how many slow streams it holds.

`python -m benchmarks.gateway [unary] [streams]` (default: both). The gateway has core 0 for itself; the provider of
0 ms and who asks share core 1, so requests per second are those of one core where the gateway's is the busier one. CPU
is user + system of the gateway alone. Rounds are interleaved and the least CPU of each is printed: others on the
machine make it worse, never better. Portkey comes from npm into .venv/portkey. It gets the same question over HTTP/1.1
and does less with it: no limits, no costs, no retries.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
import uvloop

from benchmarks.run import cpu_of, peak_mb, provider
from promptlooper.clients.adapter import connected
from promptlooper.completion import CompletionRequest, Message
from promptlooper.rpc.client import open_channel
from promptlooper.v1 import adapter_service_pb2 as pb
from promptlooper.v1.adapter_service_pb2_grpc import AdapterServiceStub
from promptlooper.wire.completion import request_to_pb

CALLS, AT_ONCE, ROUNDS = 3_000, 50, 5
HALF_LOAD = 10.0  # seconds
STREAMS, PIECES, APART = 10_000, 5, 12.0  # each piece so many seconds after the one before
QUESTION = "Capital of France? This is question {} of a series; answer with one word."
PORTKEY = "@portkey-ai/gateway@1.15.2"

Ask = Callable[[int], Awaitable[None]]


def question(n: int, timeout: float = 60.0) -> CompletionRequest:
    params = {"max_tokens": 16, "temperature": 0}
    return CompletionRequest("openai/fast", (Message("user", QUESTION.format(n)),), params, timeout)


@dataclass
class Way:
    """One way to ask, and what its rounds took."""

    pid: int
    ask: Ask
    cpu_ms: list[float] = field(default_factory=list)  # per request, by round
    rates: list[float] = field(default_factory=list)  # requests per second

    async def round(self) -> None:
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(n: int) -> None:
            async with slots:
                await self.ask(n)

        cpu, began = cpu_of(self.pid), time.monotonic()
        await asyncio.gather(*(one(n) for n in range(CALLS)))
        self.rates.append(CALLS / (time.monotonic() - began))
        self.cpu_ms.append((cpu_of(self.pid) - cpu) / CALLS * 1e3)

    async def at_half_load(self) -> list[float]:
        """Milliseconds of each request, sorted, where they come evenly at half the best rate."""
        apart, took = 2 / max(self.rates), list[float]()

        async def one(n: int, due: float) -> None:
            await self.ask(n)
            took.append((time.monotonic() - due) * 1e3)  # from when it should have been sent: no coordinated omission

        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for n in range(int(HALF_LOAD / apart)):
                due = began + n * apart
                await asyncio.sleep(due - time.monotonic())
                tasks.create_task(one(n, due))
        return sorted(took)


@contextmanager
def pinned(words: list[str], env: dict[str, str], ready: str) -> Iterator[tuple[int, int]]:
    """A process on core 0: its pid, and the port that it names in the line that matches."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROMPTLOOPER_", "OPENAI_"))}
    with subprocess.Popen(
        words,
        env={**kept, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {0}),
    ) as process:
        assert process.stdout is not None
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if found := re.search(ready, line):
                    break
            else:
                raise SystemExit(f"{' '.join(words)} ended before it was ready:\n{''.join(said)}")
            threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would hold it
            yield process.pid, int(found[1])
        finally:
            process.terminate()


def adapter(url: str) -> AbstractContextManager[tuple[int, int]]:
    listens = [f"PROMPTLOOPER_{kind}LISTEN" for kind in ("", "HEALTH_", "METRICS_")]
    env = {**dict.fromkeys(listens, "127.0.0.1:0"), "OPENAI_BASE_URL": url}
    return pinned([sys.executable, "-m", "promptlooper.adapter"], env, r"serving .*\bport=(\d+)")


def portkey() -> AbstractContextManager[tuple[int, int]]:
    folder = Path(".venv/portkey")
    if not folder.exists():
        print(f"installing {PORTKEY} into {folder} …")
        npm = ["npm", "install", "--no-audit", "--no-fund", "--silent", "--ignore-scripts", "--prefix", str(folder)]
        subprocess.run([*npm, PORTKEY], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = folder / "node_modules/@portkey-ai/gateway/build/start-server.js"
    words = ["node", str(start), f"--port={port}", "--headless"]
    return pinned(words, {"NODE_ENV": "production"}, rf"localhost:({port})")


@asynccontextmanager
async def ways(url: str) -> AsyncIterator[dict[str, Way]]:
    async with AsyncExitStack() as stack:
        (pid, port), (other, other_port) = (stack.enter_context(one) for one in (adapter(url), portkey()))
        address = f"127.0.0.1:{port}"
        stub = AdapterServiceStub(await stack.enter_async_context(open_channel(address)))
        client = await stack.enter_async_context(connected(address))

        async def unary(n: int) -> None:
            await stub.Complete(pb.CompleteRequest(request=request_to_pb(question(n))))

        async def many(n: int) -> None:
            await client.complete(question(n))

        connections = aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0)  # Node closes them after 5 s
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connections))
        headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": url, "authorization": "Bearer none"}

        async def theirs(n: int) -> None:
            asked = {"model": "fast", "messages": [{"role": "user", "content": QUESTION.format(n)}]}
            body = {**asked, "max_tokens": 16, "temperature": 0}
            async with http.post(
                f"http://127.0.0.1:{other_port}/v1/chat/completions", json=body, headers=headers
            ) as answer:
                assert (await answer.json())["choices"], answer.status

        yield {
            "Adapter, Complete": Way(pid, unary),
            "Adapter, CompleteMany": Way(pid, many),
            "Portkey, HTTP": Way(other, theirs),
        }


async def compared() -> None:
    with provider() as url:
        async with ways(url) as found:
            for way in found.values():
                await way.round()  # to warm up
                way.cpu_ms.clear(), way.rates.clear()
            for _ in range(ROUNDS):
                for way in found.values():
                    await way.round()
            print(
                f"\n{CALLS:,} requests, {AT_ONCE} at once, provider 0 ms, {ROUNDS} rounds each; a core for the gateway"
            )
            for name, way in found.items():
                took = await way.at_half_load()
                p50, p99 = (took[int(len(took) * share)] for share in (0.5, 0.99))
                least, median = min(way.cpu_ms), statistics.median(way.cpu_ms)
                print(
                    f"  {name:<22} {least:.2f} ms CPU per request (median {median:.2f}); "
                    f"{max(way.rates):,.0f} requests/s; at half of that p50 {p50:.1f} ms, p99 {p99:.1f} ms"
                )


async def streamed() -> None:
    """Opens all, and reads each to its end."""
    with provider(APART, PIECES) as url, adapter(url) as (pid, port):
        async with AsyncExitStack() as stack:
            channels = [await stack.enter_async_context(open_channel(f"127.0.0.1:{port}")) for _ in range(10)]
            stubs = [AdapterServiceStub(channel) for channel in channels]
            idle, begun, done = _resident_mb(pid), 0, 0
            all_begun = asyncio.Event()

            async def one(n: int) -> None:
                nonlocal begun, done
                pieces = []
                asked = pb.StreamCompleteRequest(request=request_to_pb(question(n, timeout=600.0)))
                async for message in stubs[n % len(stubs)].StreamComplete(asked, timeout=600.0):
                    if not pieces:
                        begun += 1
                        if begun == STREAMS:
                            all_begun.set()
                    pieces.append(message)
                assert pieces[-1].completion.output == "word " * PIECES
                done += 1

            cpu, began = cpu_of(pid), time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                for n in range(STREAMS):
                    tasks.create_task(one(n))
                await all_begun.wait()
                opened, ended = time.monotonic() - began, done
                print(f"\n{STREAMS:,} streams of {PIECES} pieces, {APART:g} s apart: all open after {opened:.1f} s")
                print(
                    f"  {ended} had ended by then; {_resident_mb(pid):.0f} MB resident, {idle:.0f} MB before the first"
                )
            cpu = (cpu_of(pid) - cpu) / STREAMS * 1e3
            print(f"  all read to the end; peak {peak_mb(pid):.0f} MB; {cpu:.2f} ms CPU per stream")


def _resident_mb(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 2**20


def main() -> None:
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("this needs two cores: one for the gateway, one for who asks and who answers")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < STREAMS * 1.2:
        raise SystemExit(
            f"at most {hard:,} files may be open here, and {STREAMS:,} streams need more; raise `ulimit -Hn`"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, {1})  # the provider inherits it
    chosen = sys.argv[1:] or ["unary", "streams"]
    for name, measure in {"unary": compared, "streams": streamed}.items():
        if name in chosen:
            uvloop.run(measure())


if __name__ == "__main__":
    main()
