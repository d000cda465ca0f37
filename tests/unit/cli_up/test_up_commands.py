"""`up`, `down`, `status` and `serve` where there is nothing to start, or no stack."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from promptlooper.cli.main import main
from promptlooper.cli.stack import free_port_base, planned_parts
from promptlooper.cli.stack_state import (
    Process,
    is_owned,
    ownership,
    planned_state,
    process_of,
    read_state,
    write_state,
)

Invoke = Callable[..., Result]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "home" / "up"


@pytest.fixture
def promptlooper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Invoke:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPTLOOPER_HOME", str(tmp_path / "home"))
    return lambda *args: CliRunner().invoke(main, list(args))


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("database", [(), ("--database-url", "sqlite:///file.db")])
def test_more_than_one_runner_on_sqlite_is_refused_and_told_what_to_give(
    promptlooper: Invoke, data: Path, database: tuple[str, ...]
) -> None:
    result = promptlooper("up", "--runners", "2", *database)
    assert result.exit_code == 2
    assert "SQLite takes one Runner, and --runners is 2" in result.stderr
    assert "--database-url postgresql://" in result.stderr
    assert not data.exists()


def test_wrong_settings_are_refused_before_anything_is_started(
    promptlooper: Invoke, data: Path, tmp_path: Path
) -> None:
    url = promptlooper("up", "--database-url", "foo")
    assert (url.exit_code, data.exists()) == (2, False)
    assert "the database URL can't be read" in url.stderr
    (tmp_path / "providers.yaml").write_text("providers:\n  - name: a\n    foo: 3\n")
    providers = promptlooper("up", "-d", "--providers", "providers.yaml")
    assert (providers.exit_code, data.exists()) == (2, False)
    first, second = providers.stderr.splitlines()
    assert first.startswith(f"{tmp_path}/providers.yaml:2: ")
    assert second.startswith(f"{tmp_path}/providers.yaml:3: ")


def test_a_providers_file_that_is_not_there_is_refused(promptlooper: Invoke) -> None:
    result = promptlooper("up", "--providers", "nowhere.yaml")
    assert result.exit_code == 2
    assert "nowhere.yaml" in result.stderr


@pytest.mark.parametrize("detach", [(), ("-d",)])
def test_a_port_in_use_is_named_before_anything_starts(
    promptlooper: Invoke, data: Path, detach: tuple[str, ...]
) -> None:
    base = free_port_base({})
    with socket.create_server(("127.0.0.1", base + 2)):
        result = promptlooper("up", *detach, "--port-base", str(base))
    assert result.exit_code == 1
    assert f"{base + 2} (cache-0)" in result.stderr
    assert "--port-base" in result.stderr
    assert not data.exists()


def test_up_twice_is_refused_and_says_how_to_see_and_stop_the_first(promptlooper: Invoke, data: Path) -> None:
    with ownership(data):
        write_state(data, planned_state(planned_parts({}, 7051), None))
        result = promptlooper("up", "-d", "--port-base", "0")
    assert result.exit_code == 1
    for said in ("already running", "127.0.0.1:7051", "promptlooper status", "promptlooper down"):
        assert said in result.stderr


def test_hints_name_a_data_folder_that_is_not_the_usual_one(promptlooper: Invoke, tmp_path: Path) -> None:
    result = promptlooper("status", "--data", "elsewhere")
    assert f"promptlooper up -d --data {tmp_path}/elsewhere" in result.stderr


def test_status_without_a_stack_says_how_to_start_one(promptlooper: Invoke, data: Path) -> None:
    result = promptlooper("status")
    assert result.exit_code == 1
    assert str(data) in result.stderr
    assert "promptlooper up -d" in result.stderr


def test_status_json_without_a_stack_is_one_error_document(promptlooper: Invoke) -> None:
    result = promptlooper("status", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["reason"] == "NOT_RUNNING"


def test_status_shows_parts_without_a_process_as_unhealthy(promptlooper: Invoke, data: Path) -> None:
    with ownership(data):
        write_state(data, planned_state(planned_parts({}, 7051), None))
        result = promptlooper("status", "--json")
    assert result.exit_code == 1
    rows = json.loads(result.stdout)
    assert [row["name"] for row in rows] == ["nats", "redis", "cache-0", "scorer-0", "adapter-0", "runner-0"]
    assert rows[-1] == {
        "name": "runner-0",
        "kind": "runner",
        "address": "127.0.0.1:7051",
        "pid": None,
        "healthy": False,
        "metrics_address": "127.0.0.1:7251",
    }


def test_down_without_a_stack_succeeds(promptlooper: Invoke) -> None:
    result = promptlooper("down")
    assert result.exit_code == 0
    assert "No stack is running" in result.stdout


def test_down_after_a_crash_stops_what_was_left(
    promptlooper: Invoke, data: Path, child: subprocess.Popen[bytes]
) -> None:
    leave_behind(data, process_of(child.pid))
    result = promptlooper("down")
    assert result.exit_code == 0
    assert "had crashed" in result.stdout
    assert child.wait() == -9
    assert read_state(data) is None


def test_down_after_a_crash_spares_a_process_that_got_a_reused_pid(
    promptlooper: Invoke, data: Path, child: subprocess.Popen[bytes]
) -> None:
    process = process_of(child.pid)
    assert process is not None
    leave_behind(data, Process(process.pid, process.started - 60))
    result = promptlooper("down")
    assert result.exit_code == 0
    assert child.poll() is None


def leave_behind(data: Path, process: Process | None) -> None:
    """The state of a stack whose supervisor was killed."""
    with ownership(data):
        state = planned_state(planned_parts({}, 7051), None)
        write_state(data, replace(state, supervisor=Process(2**22 + 1, 0.0)).with_process("nats", process))
    assert not is_owned(data)


def test_serving_something_unknown_is_wrong_usage(promptlooper: Invoke) -> None:
    result = promptlooper("serve", "database")
    assert result.exit_code == 2
    assert "runner" in result.stderr


def test_a_service_whose_packages_are_missing_names_the_extra(
    promptlooper: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith("promptlooper.adapter")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.setitem(sys.modules, "yaml", None)
    result = promptlooper("serve", "adapter")
    assert result.exit_code == 1
    assert "pip install 'promptlooper[adapter]'" in result.stderr
