"""`up`, `status` and `down` with everything real."""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import TYPE_CHECKING

import psutil

from promptlooper.backing import free_port
from promptlooper.cli.probe import is_healthy
from promptlooper.testing.eventually import eventually
from promptlooper.testing.servers import fresh_database, postgres_server

if TYPE_CHECKING:
    from stack_lab import CommandLine

PARTS = ["nats", "redis", "cache-0", "scorer-0", "adapter-0", "runner-0"]


def log_of(promptlooper: CommandLine) -> str:
    return (promptlooper.data / "logs" / "up.log").read_text()


def pid_of(promptlooper: CommandLine, name: str) -> int:
    return next(int(row["pid"]) for row in promptlooper.status() if row["name"] == name)


def test_status_names_every_part_and_all_are_healthy(stack: CommandLine) -> None:
    rows = stack.status()
    assert [row["name"] for row in rows] == PARTS
    for row in rows:
        assert list(row) == ["name", "kind", "address", "pid", "healthy", "metrics_address"]
        assert row["kind"] == row["name"].removesuffix("-0")
        assert row["healthy"] is True
        assert psutil.pid_exists(row["pid"])
    assert stack("status").returncode == 0


def test_a_second_up_in_the_same_folder_is_refused(stack: CommandLine) -> None:
    again = stack("up", "-d", "--port-base", "0")
    assert again.returncode == 1
    assert "already running" in again.stderr
    assert all(row["healthy"] for row in stack.status())


def test_the_key_of_a_provider_is_in_the_environment_of_the_adapter_only(stack: CommandLine) -> None:
    holders = [row["name"] for row in stack.status() if "OPENAI_API_KEY" in psutil.Process(row["pid"]).environ()]
    assert holders == ["adapter-0"]


def test_nats_writes_what_it_acknowledges_to_disk(stack: CommandLine) -> None:
    assert "sync_interval: always" in (stack.data / "nats" / "nats.conf").read_text()


def test_down_leaves_no_process_and_may_be_repeated(own: CommandLine) -> None:
    started = own("up", "-d", "--port-base", "0")
    assert started.returncode == 0, started.stderr
    assert "promptlooper run FILE --server 127.0.0.1:" in started.stdout
    processes = own.processes()
    assert len(processes) >= 1 + len(PARTS)

    stopped = own("down")
    assert stopped.returncode == 0, stopped.stderr
    assert own.living(processes) == []
    assert own("down").returncode == 0
    assert own("status").returncode == 1


async def test_a_part_that_cannot_start_again_is_unhealthy_in_status_and_down_does_not_wait_for_it(
    own: CommandLine,
) -> None:
    assert own("up", "-d", "--port-base", "0").returncode == 0
    database = own.data / "promptlooper.db"
    database.rename(own.data / "away.db")
    database.mkdir()  # SQLite can't open that
    os.kill(pid_of(own, "runner-0"), signal.SIGKILL)
    await eventually(lambda: "runner-0 ended with exit code 1; it is started again in 0.8 s" in log_of(own), within=30)
    shown = own("status")
    assert shown.returncode == 1
    assert [line.split()[0] for line in shown.stdout.splitlines() if line.endswith(" no")] == ["runner-0"]
    processes = own.processes()
    stopped = own("down")
    assert (stopped.returncode, stopped.stdout) == (0, "Stopped.\n")
    assert own.living(processes) == []


async def test_nothing_outlives_a_killed_supervisor_and_up_works_again(own: CommandLine) -> None:
    assert own("up", "-d", "--port-base", "0").returncode == 0
    processes = own.processes()
    processes[0].kill()
    await eventually(lambda: own.living(processes) == [])

    shown = own("status")
    assert shown.returncode == 1
    assert "No stack is running" in shown.stderr
    again = own("up", "-d", "--port-base", "0")
    assert again.returncode == 0, again.stderr
    assert all(row["healthy"] for row in own.status())


async def test_in_the_foreground_every_line_has_a_name_and_sigterm_stops_in_order(own: CommandLine) -> None:
    with own.popen("up", "--port-base", "0") as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C stops everything" in line:
                break
        processes = own.processes()
        process.send_signal(signal.SIGTERM)
        lines += process.stdout.readlines()
    assert process.returncode == 143
    assert own.living(processes) == []
    *log, farewell = lines
    assert farewell == "up        | everything is stopped\n"
    assert {line.split("|")[0].strip() for line in log} <= {"up", *PARTS}
    stopped = [line.split()[-1] for line in log if "| stopping " in line]
    assert stopped == ["runner-0", "adapter-0", "scorer-0", "cache-0", "redis", "nats"]


def test_a_part_that_can_not_start_stops_everything_and_shows_why(own: CommandLine) -> None:
    own.extra["PROMPTLOOPER_SLOTS"] = "none"  # of the Runner
    started = own("up", "-d", "--port-base", "0")
    assert started.returncode == 1
    assert "runner-0" in started.stderr
    assert "PROMPTLOOPER_SLOTS" in started.stderr
    assert own("status").returncode == 1
    assert [p for p in psutil.process_iter(["cmdline"]) if str(own.data) in " ".join(p.info["cmdline"] or [])] == []


def test_a_wrong_providers_file_is_refused_before_anything_starts(own: CommandLine) -> None:
    (own.folder / "providers.yaml").write_text("providers: [{name: mine, type: carrier-pigeon}]\n")
    started = own("up", "-d", "--port-base", "0", "--providers", "providers.yaml")
    assert started.returncode == 2
    assert "providers.yaml:1: provider 'mine': there is no type 'carrier-pigeon'" in started.stderr
    assert own("status").returncode == 1


def test_a_port_in_use_is_refused_before_anything_starts(own: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started = own("up", "-d", "--port-base", str(port))
    assert started.returncode == 1
    assert f"{port} (runner-0)" in started.stderr
    assert not own.data.exists()


def test_replicas_on_a_new_postgresql_run_an_experiment(own: CommandLine) -> None:
    (own.folder / "promptlooper.yaml").write_text(
        "model: mock/echo\nrepeats: 20\nprompt: hello\nscorers: [contains: h]\n"
    )
    replicas = ("--adapters", "2", "--caches", "2", "--scorers", "2")
    with postgres_server() as server:
        started = own("up", "-d", "--port-base", "0", "--database-url", fresh_database(server), *replicas)
        assert started.returncode == 0, started.stderr
        assert len(own.status()) == len(PARTS) + 3
        ran = own("run", "--server", own.server(), "--json")
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["counts"]["completed"] == 20
        assert not (own.data / "promptlooper.db").exists()
        assert own("down").returncode == 0


async def test_a_service_served_alone_answers_health_and_stops_cleanly(own: CommandLine) -> None:
    port, health_port = free_port(), free_port()
    own.extra["PROMPTLOOPER_LISTEN"] = f"127.0.0.1:{port}"
    own.extra["PROMPTLOOPER_HEALTH_LISTEN"] = f"127.0.0.1:{health_port}"
    with own.popen("serve", "scorer") as process:
        for address in (f"127.0.0.1:{port}", f"127.0.0.1:{health_port}"):
            await eventually(lambda address=address: is_healthy("scorer", address, None))
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
