"""What metrics and traces cost: CPU per run on whole stacks side by side, in pairs that take turns.

`python -m benchmarks.observability [BEFORE]`: a stack as it is, scraped every second; one that is traced at the default
sampling besides; and, where BEFORE is a checkout of an earlier commit, one of that, for what metrics cost. A pair is
one round's experiments on two stacks; printed are the medians of the ratios, since CPU drifts on a shared machine.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from benchmarks.run import cpu_of, measured_command, provider, written

RUNS, ROUNDS = 2_000, 20
SCRAPE_EVERY = 1.0  # seconds: fifteen times as often as Prometheus does by default


@dataclass
class Stack:
    name: str
    data: Path
    env: dict[str, str] = field(default_factory=dict)
    parts: list[dict[str, str | int | None]] = field(default_factory=list)
    per_run: list[float] = field(default_factory=list)  # ms of CPU, by round

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "promptlooper.cli.main", *words]

    def call(self, *words: str) -> str:
        done = subprocess.run(
            self.command(*words, "--data", str(self.data)),
            env={**os.environ, **self.env},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        return done.stdout

    @contextmanager
    def up(self) -> Iterator[None]:
        self.call("up", "-d", "--port-base", "0")
        try:
            self.parts = json.loads(self.call("status", "--json"))
            yield
        finally:
            self.call("down")

    def run(self, file: Path, runs: int) -> None:
        """One experiment; its CPU in our services and the command line is kept."""
        pids = [int(str(part["pid"])) for part in self.parts if part["kind"] not in ("nats", "redis")]
        server = next(str(part["address"]) for part in self.parts if part["kind"] == "runner")
        before = sum(cpu_of(pid) for pid in pids)
        used = measured_command(self.command("run", str(file), "-q", "--server", server), self.env)
        self.per_run.append((sum(cpu_of(pid) for pid in pids) - before + used.cpu) / runs * 1e3)

    @contextmanager
    def scraped(self) -> Iterator[None]:
        addresses = [part["metrics_address"] for part in self.parts if part.get("metrics_address")]
        stopped = threading.Event()

        def scrape() -> None:
            while not stopped.wait(SCRAPE_EVERY):
                for address in addresses:
                    urlopen(f"http://{address}/metrics", timeout=10).close()

        thread = threading.Thread(target=scrape)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()


@contextmanager
def collector() -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.collector"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            print(f"the collector got {int(process.stdout.readline()):,} spans")


def main() -> None:
    with ExitStack() as stack:
        enter = stack.enter_context
        folder = Path(enter(tempfile.TemporaryDirectory(prefix="promptlooper-bench-")))
        openai = {"OPENAI_BASE_URL": enter(provider())}
        plain = Stack("as it is", folder / "plain", openai)
        traced = Stack("traced", folder / "traced", {**openai, "OTEL_EXPORTER_OTLP_ENDPOINT": enter(collector())})
        stacks, pairs = [plain, traced], [("traces at the default sampling, over none", traced, plain)]
        if len(sys.argv) > 1:
            tree = Path(sys.argv[1]).absolute()
            path = os.pathsep.join(str(tree / part) for part in ("services", "shared"))
            before = Stack("before", folder / "before", {**openai, "PYTHONPATH": path})
            stacks.append(before)
            pairs.append((f"metrics, scraped every {SCRAPE_EVERY:g} s, over {tree.name} without", plain, before))
        for one in stacks:
            enter(one.up())
            enter(one.scraped())
            one.run(written(folder, 200, 100), 200)  # warm-up
            one.per_run.clear()
        for number in range(ROUNDS):
            file = written(folder, RUNS, 100, series=number + 1)
            turn = number % len(stacks)
            for one in (*stacks[turn:], *stacks[:turn]):
                one.run(file, RUNS)
        print(f"{ROUNDS} rounds of {RUNS:,} runs, concurrency 100; ms CPU per run of services and command line")
        for one in stacks:
            rounds = " ".join(f"{spent:.2f}" for spent in one.per_run)
            print(f"  {one.name:<9} median {statistics.median(one.per_run):.2f} ({rounds})")
        for what, with_, without in pairs:
            ratios = [a / b for a, b in zip(with_.per_run, without.per_run, strict=True)]
            low, middle, high = statistics.quantiles(ratios)
            total = sum(with_.per_run) / sum(without.per_run)
            print(f"  {what}: median {middle:.3f} (quartiles {low:.3f} to {high:.3f}), all rounds together {total:.3f}")


if __name__ == "__main__":
    main()
