from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import promptlooper.rpc.process

SHARED = Path(promptlooper.rpc.process.__file__).parents[2]
HEAD = """
import asyncio, logging, sys
sys.path.insert(0, {shared!r})
from promptlooper.errors import InvalidArgument, StoreUnavailable
from promptlooper.rpc.process import run_service, until_signalled
"""


def service(body: str, name: str = "runner") -> subprocess.Popen[str]:
    code = HEAD.format(shared=str(SHARED)) + textwrap.dedent(body) + f"\nrun_service(main, name={name!r})\n"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


WAITS = """
async def main():
    print("ready", flush=True)
    number = await until_signalled()
    print("stopping", number.name, flush=True)
    {then}
    print("clean", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_service_in_good_order(number: signal.Signals) -> None:
    process = service(WAITS.format(then=""))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    code, out, err = ended(process)
    assert (code, out) == (0, f"stopping {number.name}\nclean\n")
    assert f"INFO runner {number.name}: stopping" in err


def test_second_signal_ends_it_at_once() -> None:
    process = service(WAITS.format(then="await asyncio.sleep(1000)"))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "stopping SIGTERM\n"
    process.send_signal(signal.SIGINT)
    code, out, _ = ended(process)
    assert (code, out) == (130, "")


def test_signal_before_it_serves_cancels_and_cleans_up() -> None:
    process = service("""
async def main():
    try:
        print("starting", flush=True)
        await asyncio.sleep(1000)
    finally:
        print("clean", flush=True)
""")
    assert process.stdout is not None
    assert process.stdout.readline() == "starting\n"
    process.send_signal(signal.SIGTERM)
    code, out, err = ended(process)
    assert (code, out) == (143, "clean\n")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("InvalidArgument(\"PROMPTLOOPER_LISTEN is 'x'\")", 2, "ERROR runner PROMPTLOOPER_LISTEN is 'x'\n"),
        ('StoreUnavailable("no database")', 1, "ERROR runner no database\n"),
    ],
)
def test_failure_that_is_understood_is_one_line(raised: str, code: int, said: str) -> None:
    got, _, err = ended(service(f"async def main():\n    raise {raised}"))
    assert got == code
    assert err.endswith(said)
    assert err.count("\n") == 1


def test_fault_has_its_traceback() -> None:
    code, _, err = ended(service("async def main():\n    raise ValueError('why')"))
    assert code == 1
    assert "ERROR runner stopped by a fault\nTraceback" in err


@pytest.mark.parametrize(("level", "heard"), [("", True), ("warning", False), ("nonsense", True)])
def test_log_level_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, level: str, heard: bool) -> None:
    monkeypatch.setenv("PROMPTLOOPER_LOG_LEVEL", level)
    _, _, err = ended(service("async def main():\n    logging.getLogger('x').info('here', extra={'runs': 3})"))
    assert ("INFO runner here runs=3" in err) is heard


def test_end_of_main_is_the_end() -> None:
    assert ended(service("async def main():\n    logging.getLogger().info('done', extra={'runs': 3})"))[0] == 0


def test_each_mistake_in_a_file_is_a_line_of_its_own() -> None:
    raised = r'InvalidArgument("p.yaml:2: one\np.yaml:3: two")'
    got, _, err = ended(service(f"async def main():\n    raise {raised}"))
    assert got == 2
    assert [line.partition(" ERROR ")[2] for line in err.splitlines()] == [
        "runner p.yaml:2: one",
        "runner p.yaml:3: two",
    ]


@pytest.mark.parametrize("holding", ["time.sleep(1000)", "await asyncio.Event().wait()"])
def test_service_that_does_not_end_after_its_grace_is_ended(holding: str) -> None:
    process = service(f"""
import time
import promptlooper.rpc.process
promptlooper.rpc.process._CLEANING_UP = 0.1

async def main():
    print("ready", flush=True)
    await until_signalled(0.1)
    {holding}
""")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 143
    assert "ERROR runner still not stopped 0.2 s after SIGTERM: leaving what there is" in err


@pytest.mark.parametrize("module", ["cli.probe", "clients.runner"])
def test_grpc_is_told_to_be_quiet_before_it_is_imported(module: str) -> None:
    code = f"""
import os, sys

class Seen:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            print(os.environ.get("GRPC_VERBOSITY"))

sys.meta_path.insert(0, Seen())
import promptlooper.{module}
import grpc
"""
    env = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "ERROR\n"
