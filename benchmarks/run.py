"""CPU per run, runs per second and peak memory: embedded, and through the services.

`python -m benchmarks.run [embedded] [slow] [memory] [services]` (default: all). One stage and one `contains` scorer per
run, against a provider in a process of its own. CPU is user + system. Wall times on shared machines are noisy; CPU per
run is steady to about 10 %.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from promptlooper.testing.servers import postgres_server

CLI = str(Path(sys.executable).with_name("promptlooper"))
EXPERIMENT = """\
version: 1
name: bench
inputs: {{file: {rows}}}
model: openai/fast
params: {{max_tokens: 16, temperature: 0}}
prompt: "Capital of {{{{ input.country }}}}? This is question {{{{ input.n }}}} of a series; answer with one word."
scorers: [{{contains: "{{{{ expected }}}}"}}]
limits: {{max_concurrency: {concurrency}}}
"""


@dataclass(frozen=True)
class Usage:
    """Of one finished command."""

    wall: float  # seconds
    cpu: float  # seconds
    peak_mb: float


@contextmanager
def provider(delay: float = 0.0, pieces: int = 3) -> Iterator[str]:
    """A fast provider's base URL."""
    command = [sys.executable, "-m", "benchmarks.provider", str(delay), str(pieces)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait()


def written(folder: Path, runs: int, concurrency: int, series: int = 0) -> Path:
    """An experiment; each series asks questions of its own."""
    name = f"{runs}-{series}"
    rows = folder / f"rows-{name}.jsonl"
    if not rows.exists():
        numbers = range(series * runs, (series + 1) * runs)
        lines = (json.dumps({"country": "France", "n": n, "expected": "Paris"}) for n in numbers)
        rows.write_text("\n".join(lines) + "\n")
    file = folder / f"bench-{name}-{concurrency}.yaml"
    file.write_text(EXPERIMENT.format(rows=rows.name, concurrency=concurrency))
    return file


def measured(arguments: list[str], env: dict[str, str]) -> Usage:
    """Runs the CLI to its end; a failure ends the benchmark."""
    return measured_command([CLI, *arguments], env)


def measured_command(words: list[str], env: dict[str, str]) -> Usage:
    began = time.monotonic()
    process = subprocess.Popen(words, env={**os.environ, **env}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return Usage(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def embedded(folder: Path) -> None:
    runs = 5_000
    with provider() as url:
        home = folder / "home-embedded"
        env = {"OPENAI_BASE_URL": url, "PROMPTLOOPER_HOME": str(home)}
        start = measured(["run", str(written(folder, 1, 100)), "-q"], env)
        cold = measured(["run", str(written(folder, runs, 100)), "-q"], env)
        warm = measured(["run", str(written(folder, runs, 100)), "-q"], env)
    print(f"\nembedded, SQLite, {runs:,} runs, concurrency 100, provider 0 ms (start-up alone: {start.cpu:.2f} s CPU)")
    for name, used in (("asked", cold), ("every answer cached", warm)):
        print(
            f"  {name:<20} {used.cpu / runs * 1e3:.2f} ms CPU per run with start-up, "
            f"{(used.cpu - start.cpu) / runs * 1e3:.2f} without; "
            f"{runs / used.wall:,.0f} runs/s; peak {used.peak_mb:.0f} MB"
        )


def slow(folder: Path) -> None:
    runs, concurrency = 5_000, 500
    with provider(1.0) as url:
        env = {"OPENAI_BASE_URL": url, "PROMPTLOOPER_HOME": str(folder / "home-slow")}
        start = measured(["run", str(written(folder, 1, 100)), "-q", "--no-cache"], env)
        used = measured(["run", str(written(folder, runs, concurrency)), "-q"], env)
    ideal = runs / concurrency
    print(f"\nembedded, {runs:,} runs, concurrency {concurrency}, provider 1 s: ideal {ideal:.0f} s")
    print(
        f"  {used.wall:.1f} s with start-up ({used.wall / ideal:.2f} of the ideal), "
        f"{used.wall - (start.wall - 1):.1f} s without; {used.cpu / runs * 1e3:.2f} ms CPU per run"
    )


def memory(folder: Path) -> None:
    with provider() as url:
        peaks = {}
        for runs in (2_000, 20_000):
            env = {"OPENAI_BASE_URL": url, "PROMPTLOOPER_HOME": str(folder / f"home-{runs}")}
            peaks[runs] = measured(["run", str(written(folder, runs, 100)), "-q"], env)
    small, large = peaks[2_000], peaks[20_000]
    more = large.peak_mb - small.peak_mb
    print(f"\nembedded, peak memory: 2,000 runs {small.peak_mb:.0f} MB, 20,000 {large.peak_mb:.0f} MB: {more:+.0f} MB")
    print(f"  {large.cpu / 20_000 * 1e3:.2f} ms CPU per run at 20,000")


def services(folder: Path) -> None:
    runs = 5_000
    with provider() as url, postgres_server() as postgres:
        assert postgres.process is not None
        for name, database_url in (("SQLite", ""), ("PostgreSQL", postgres.url)):
            data = folder / f"up-{name}"
            arguments = ["--database-url", database_url] if database_url else []
            env = {**os.environ, "OPENAI_BASE_URL": url}
            quiet = {"stdout": subprocess.DEVNULL}
            subprocess.run(
                [CLI, "up", "-d", "--port-base", "0", "--data", str(data), *arguments], env=env, check=True, **quiet
            )  # type: ignore[call-overload]
            try:
                _through_services(folder, data, name, runs, postgres.process.pid if database_url else None)
            finally:
                subprocess.run([CLI, "down", "--data", str(data)], check=True, **quiet)  # type: ignore[call-overload]


def _through_services(folder: Path, data: Path, database: str, runs: int, postmaster: int | None) -> None:
    told = subprocess.run([CLI, "status", "--json", "--data", str(data)], check=True, capture_output=True)
    parts = json.loads(told.stdout)
    server = next(part["address"] for part in parts if part["kind"] == "runner")
    measured(["run", str(written(folder, 100, 100)), "-q", "--server", server], {})  # warm-up
    for name in ("asked", "every answer cached"):
        pids = {part["name"]: part["pid"] for part in parts}
        before = {part: cpu_of(pid) for part, pid in pids.items()}
        postgres_before = tree_cpu_of(postmaster) if postmaster else 0.0
        used = measured(["run", str(written(folder, runs, 100)), "-q", "--server", server], {})
        spent = {part: cpu_of(pid) - before[part] for part, pid in pids.items()}
        postgres = tree_cpu_of(postmaster) - postgres_before if postmaster else 0.0
        ours = {part: cpu for part, cpu in spent.items() if not part.startswith(("nats", "redis"))}
        ours["cli"] = used.cpu
        theirs = {part: cpu for part, cpu in spent.items() if part not in ours}
        if postmaster:
            theirs["postgres"] = postgres
        rate = runs / used.wall
        print(f"\nservices on {database}, {runs:,} runs, concurrency 100, provider 0 ms, {name}: {rate:,.0f} runs/s")
        for title, group in (("ours", ours), ("theirs", theirs)):
            shown = ", ".join(f"{part} {cpu / runs * 1e3:.2f}" for part, cpu in group.items())
            print(f"  {title:<7} {sum(group.values()) / runs * 1e3:.2f} ms CPU per run ({shown})")
    peaks = ", ".join(f"{part['name']} {peak_mb(part['pid']):.0f}" for part in parts)
    print(f"  peak memory, MB: {peaks}")


def cpu_of(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def peak_mb(pid: int) -> float:
    """Of Linux: the most memory that the process ever had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024


def tree_cpu_of(pid: int) -> float:
    """Of PostgreSQL: its server processes, and those that ended."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    own = times.user + times.system + times.children_user + times.children_system
    return float(own + sum(cpu_of(child.pid) for child in process.children(recursive=True)))


def main() -> None:
    known = {"embedded": embedded, "slow": slow, "memory": memory, "services": services}
    wanted = sys.argv[1:] or list(known)
    with tempfile.TemporaryDirectory(prefix="promptlooper-bench-") as folder:
        for name in wanted:
            known[name](Path(folder))


if __name__ == "__main__":
    main()
