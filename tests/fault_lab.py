"""A whole stack of real processes that tests kill, freeze, cut off and start again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from promptlooper.backing import NatsServer, PostgresServer, RedisServer, Server, dies_with_parent
from promptlooper.cli.probe import is_healthy
from promptlooper.clients.runner import RunnerClient, connected
from promptlooper.runner.store.migrate import upgrade
from promptlooper.testing.eventually import eventually
from promptlooper.testing.provider import FakeProvider, ProviderRequest, Reply
from promptlooper.testing.proxy import FaultProxy

HOST = "127.0.0.1"
RECONNECT_FOR = 120.0  # seconds
LINES_SHOWN, LETTERS_SHOWN = 40, 250  # of each log, where a test failed
USD_PER_MTOK_IN, USD_PER_MTOK_OUT = 100, 400
PROVIDERS = f"""
providers:
  - name: openai
    type: openai
    base_url: {{base_url}}
    api_key_env: OPENAI_API_KEY
    limits: {{{{max_concurrency: 1000}}}}
    prices:
      any:
        input_usd_per_mtok: {USD_PER_MTOK_IN}
        output_usd_per_mtok: {USD_PER_MTOK_OUT}
"""
_taken: set[int] = set()


def steady_port() -> int:
    """A port that a process can have again after it was killed: below those that outgoing connections get."""
    while True:
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if port not in _taken:
            _taken.add(port)
            return port


def inherited_environment() -> dict[str, str]:
    """Ours, without what would set up a service or lead to a real provider."""
    ours = ("_API_KEY", "_TOKEN", "_BASE_URL")
    return {k: v for k, v in os.environ.items() if not k.startswith("PROMPTLOOPER_") and not k.endswith(ours)}


def priced(folder: Path, base_url: str) -> str:
    """Writes a providers file under which every call of `openai/any` has a known price; its path."""
    path = folder / "providers.yaml"
    path.write_text(PROVIDERS.format(base_url=base_url))
    return str(path)


def price_of(tokens_in: int, tokens_out: int) -> int:
    """What a call costs by that file, in nano-USD."""
    return 1_000 * (tokens_in * USD_PER_MTOK_IN + tokens_out * USD_PER_MTOK_OUT)


class Node:
    """One service as a process, on a port that it keeps. Its log is a file, over all its lives. `python` may be that
    of another version of the code."""

    def __init__(
        self, name: str, module: str, folder: Path, env: dict[str, str], python: Sequence[str] = (sys.executable,)
    ) -> None:
        self.name, self._command, self.log = name, [*python, "-m", module], folder / f"{name}.log"
        self.address, self.health_address = f"{HOST}:{steady_port()}", f"{HOST}:{steady_port()}"
        self._env = {
            **inherited_environment(),
            "PROMPTLOOPER_LISTEN": self.address,
            "PROMPTLOOPER_HEALTH_LISTEN": self.health_address,
            **env,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.lives, self.born = 0, 0.0  # monotonic, of this life

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, **env: str) -> None:
        """Launches it; `env` is for this life only."""
        assert not self.is_alive, f"{self.name} runs already"
        self.lives += 1
        self.born = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._env | env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    async def ready(self, within: float = 30.0) -> None:
        def healthy() -> bool | Awaitable[bool]:
            if not self.is_alive:
                raise RuntimeError(f"{self.name} ended by itself:\n{self.last_words()}")
            return is_healthy("service", self.address, self.health_address)

        await eventually(healthy, within)

    async def ended(self, within: float = 30.0) -> int:
        """Its exit code, negative for a signal."""
        process = self.process
        assert process is not None
        await eventually(lambda: process.poll() is not None, within)
        return int(process.returncode)

    def kill(self) -> None:
        """As a crash: SIGKILL, and it is gone when this returns."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """Freezes it."""
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def terminate(self, within: float = 30.0) -> int:
        """As an operator ends it: SIGTERM."""
        os.kill(self.pid, signal.SIGTERM)
        return await self.ended(within)

    def said(self, text: str) -> list[str]:
        """Lines of its log with `text`."""
        return [line for line in self._lines() if text in line]

    def last_words(self) -> str:
        return "\n".join(line[:LETTERS_SHOWN] for line in self._lines()[-LINES_SHOWN:])

    def _lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []


@dataclass(slots=True)
class Death:
    """When (monotonic) a Runner was about to be killed or frozen, and until when it did not know that it counts as
    dead: a killed one makes no call after its death, one that was frozen may make those it had claimed."""

    name: str
    at: float
    until: float


@dataclass
class Cluster:
    """Runners with all that they need. Runner `runner-1` asks through an Adapter of its own, which the provider knows
    as asker `runner-1`; each has proxies of its own to what is `proxied`."""

    provider: FakeProvider
    database_url: str
    postgres: PostgresServer
    nats: NatsServer
    redis: RedisServer
    runners: list[Node]
    adapters: list[Node]
    cache: Node
    scorer: Node
    proxies: dict[str, list[FaultProxy]]
    deaths: list[Death] = field(default_factory=list)

    @property
    def nodes(self) -> list[Node]:
        return [*self.runners, *self.adapters, self.cache, self.scorer]

    @asynccontextmanager
    async def client(self, runner: Node | None = None) -> AsyncIterator[RunnerClient]:
        """A client of one Runner, or of all in turn."""
        address = runner.address if runner is not None else ",".join(node.address for node in self.runners)
        async with connected(address, reconnect_for=RECONNECT_FOR) as client:
            yield client

    def open_calls_of(self, runner: Node) -> int:
        """Calls of its present life that are open at the provider."""
        return sum(
            call.ended is None and call.asker == runner.name and call.started > runner.born
            for call in self.provider.history
        )

    def kill(self, runner: Node) -> None:
        assert runner.is_alive, f"{runner.name} has ended by itself:\n{runner.last_words()}"
        now = time.monotonic()
        self.deaths.append(Death(runner.name, now, now))
        runner.kill()


@dataclass(frozen=True, slots=True)
class Backing:
    """The servers that services need, with the folder of their data, which is also for logs."""

    folder: Path
    postgres: PostgresServer
    nats: NatsServer
    redis: RedisServer


@asynccontextmanager
async def backing(tables: Callable[[str], object] = upgrade) -> AsyncIterator[Backing]:
    """Fresh ones, with the tables in PostgreSQL: `tables` makes them in the database of an URL."""
    with ExitStack() as stack:
        # Not pytest's tmp_path: PostgreSQL may run as another user, who may not enter that.
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="promptlooper-")))
        os.chmod(folder, 0o755)
        postgres = PostgresServer(folder / "postgres", steady_port(), durable=False)
        nats = NatsServer(folder / "nats", steady_port(), durable=False)
        redis = RedisServer(folder / "redis", steady_port(), durable=False)
        servers: tuple[Server, ...] = (postgres, nats, redis)
        for server in servers:
            stack.callback(server.stop)
            server.start()
        tables(postgres.url)
        yield Backing(folder, postgres, nats, redis)


@asynccontextmanager
async def started(nodes: Sequence[Node], *, wait: bool = True) -> AsyncIterator[None]:
    """Nodes from their start to their end; what they said last is shown when a test fails."""
    with ExitStack() as stack:
        for node in nodes:
            stack.callback(node.kill)
            node.start()
        try:
            if wait:
                for node in nodes:
                    await node.ready()
            yield
        except BaseException:
            for node in nodes:
                pid = node.process and node.process.pid
                print(f"--- the end of the log of {node.name} (pid {pid})\n{node.last_words()}")
            raise


@asynccontextmanager
async def cluster(
    provider: FakeProvider,
    *,
    runners: int = 1,
    lease_ttl: float = 2.0,
    slots: int = 1_000,
    replicas: bool = False,
    proxied: Collection[str] = (),
    wait: bool = True,
) -> AsyncIterator[Cluster]:
    """Everything started, on PostgreSQL. `replicas`: each Runner has a name of its own, under which it succeeds itself,
    as `promptlooper up` gives it; else only a lease that ran out says that one is dead. `proxied`: of `postgres`,
    `nats`, `redis`, what is reached through fault proxies. Every call has a known price."""
    async with AsyncExitStack() as stack:
        backs = await stack.enter_async_context(backing())
        folder, postgres, nats, redis = backs.folder, backs.postgres, backs.nats, backs.redis
        servers: dict[str, Server] = {"postgres": postgres, "nats": nats, "redis": redis}
        proxies: dict[str, list[FaultProxy]] = {}
        for kind in proxied:
            proxies[kind] = [await _proxy(stack, servers[kind].port) for _ in range(1 if kind == "redis" else runners)]

        def url_of(kind: str, number: int = 0) -> str:
            url, port = servers[kind].url, servers[kind].port
            return url.replace(f":{port}", f":{proxies[kind][number].port}") if kind in proxies else url

        patient = {"PROMPTLOOPER_REDIS_URL": url_of("redis"), "PROMPTLOOPER_REDIS_TIMEOUT": "0.5"}
        cache = Node("cache", "promptlooper.cache", folder, patient)
        scorer = Node("scorer", "promptlooper.scorer", folder, {})
        asking = {"PROMPTLOOPER_PROVIDERS": priced(folder, provider.base_url)}
        names = [f"runner-{number}" for number in range(runners)]
        adapters = [
            Node(f"adapter-{n}", "promptlooper.adapter", folder, {**asking, "OPENAI_API_KEY": name})
            for n, name in enumerate(names)
        ]
        made = [
            Node(
                name,
                "promptlooper.runner",
                folder,
                {
                    "PROMPTLOOPER_DATABASE_URL": url_of("postgres", number),
                    "PROMPTLOOPER_NATS_URL": url_of("nats", number),
                    "PROMPTLOOPER_ADAPTER_ADDRESS": adapters[number].address,
                    "PROMPTLOOPER_CACHE_ADDRESS": cache.address,
                    "PROMPTLOOPER_SCORER_ADDRESS": scorer.address,
                    "PROMPTLOOPER_LEASE_TTL": str(lease_ttl),
                    "PROMPTLOOPER_SLOTS": str(slots),
                    "PROMPTLOOPER_REPLICA": name if replicas else "",
                },
            )
            for number, name in enumerate(names)
        ]
        lab = Cluster(provider, postgres.url, postgres, nats, redis, made, adapters, cache, scorer, proxies)
        await stack.enter_async_context(started(lab.nodes, wait=wait))
        yield lab


async def _proxy(stack: AsyncExitStack, target_port: int) -> FaultProxy:
    proxy = FaultProxy(target_port)
    proxy.port = steady_port()
    await proxy.accept()
    stack.push_async_callback(proxy.refuse)
    return proxy


async def running(server: Server, within: float = 60.0) -> None:
    """Starts a server that was stopped or killed."""
    server.launch()
    await eventually(server.is_ready, within)


def freeze(server: Server) -> list[psutil.Process]:
    """SIGSTOP to a server and its children; `thaw` what comes back."""
    assert server.process is not None
    parent = psutil.Process(server.process.pid)
    parent.suspend()
    children = parent.children(recursive=True)
    for child in children:
        child.suspend()
    return [parent, *children]


def thaw(processes: list[psutil.Process]) -> None:
    for process in processes:
        process.resume()


def answering(seed: int, shortest: float, longest: float) -> Callable[[ProviderRequest], Awaitable[Reply]]:
    """A provider whose answer is a function of the question alone, after a time that is drawn from `seed`, the question
    and nothing else."""

    async def answer(request: ProviderRequest) -> Reply:
        question = request.question
        await asyncio.sleep(random.Random(f"{seed} {question}").uniform(shortest, longest))
        return Reply(answer_to(question))

    return answer


def answer_to(question: str) -> str:
    return f"<{question.split(' after ')[0]}>"
