"""`Client` and `run` against a real Runner: what a script or a notebook does."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from promptlooper.client import Client, run
from promptlooper.embedded.working import worked_on
from promptlooper.errors import (
    ExperimentNotFound,
    InvalidArgument,
    InvalidExperiment,
    RequestIdReused,
    ResumeTokenInvalid,
    ServiceUnavailable,
)
from promptlooper.experiment import (
    Experiment,
    ExperimentSpec,
    ExperimentState,
    InputRow,
    MessageTemplate,
    ModelEntry,
    Pipeline,
    Stage,
)

SLOW: dict[str, Any] = {
    "name": "slow",
    "inputs": [{"n": n} for n in range(40)],
    "model": "slow/echo",
    "prompt": "number {{ input.n }}",
    "limits": {"max_concurrency": 2, "budget_usd": 1},
    "cache": {"mode": "off"},
}


@pytest.fixture
def client(address: str, here: Path) -> Any:
    with Client(address) as client:
        yield client


def test_a_file_is_run_to_its_end(client: Client) -> None:
    heard: list[Experiment] = []
    result = client.run("capitals.yaml", on_progress=heard.append)
    assert result.passed
    assert [run.output for run in result.rows()] == ["The capital of France", "The capital of Japan"]
    assert [run.input_id for run in client.rows(result.experiment_id, start=1)] == [
        client.get_run(f"{result.experiment_id}-1").input_id
    ]
    assert heard[-1].state is ExperimentState.COMPLETED
    assert "COMPLETED, 2 of 2 runs, 0 failed" in repr(result)
    assert result.to_pandas().output.tolist() == result.to_arrow().column("output").to_pylist()
    assert client.result(result.experiment_id).summary == result.summary


def test_a_file_goes_with_the_files_that_it_names(client: Client, here: Path) -> None:
    rows = "".join(f"{'x' * 200},{n}\n" for n in range(8_000))  # more than a piece
    (here / "demo").mkdir()
    (here / "demo/rows.csv").write_text("text,n\n" + rows)
    (here / "demo/ask.txt").write_text("{{ input.n }}?")
    (here / "demo/promptlooper.yaml").write_text(
        "inputs: {file: rows.csv, limit: 3}\nmodel: mock/echo\nprompt: {file: ask.txt}"
    )
    result = client.run("demo/promptlooper.yaml")
    assert [run.output for run in result.rows()] == ["0?", "1?", "2?"]
    assert result.experiment.name == "demo"
    assert client.run(Path("demo/promptlooper.yaml")).passed  # what was sent before is not sent again


def test_an_experiment_may_be_a_mapping_or_a_spec(client: Client) -> None:
    assert [run.output for run in client.run({"model": "mock/ok", "prompt": "well?"}).rows()] == ["ok"]
    stage = Stage((MessageTemplate("user", "well?"),))
    spec = ExperimentSpec("spec", (Pipeline("direct", (stage,), (ModelEntry("ok", "mock/ok"),)),), (InputRow("", 1),))
    assert [run.output for run in client.run(spec).rows()] == ["ok"]


def test_a_request_is_done_once(client: Client) -> None:
    first = client.create("capitals.yaml", request_id="nightly-1")
    assert client.create("capitals.yaml", request_id="nightly-1").experiment_id == first.experiment_id
    with pytest.raises(RequestIdReused):
        client.create({"model": "mock/ok", "prompt": "other"}, request_id="nightly-1")


def test_events_come_from_the_first_or_after_a_number(client: Client) -> None:
    created = client.create(SLOW)
    live = list(client.watch(created.experiment_id))  # joined while it runs
    assert [event.event_seq for event in live] == list(range(1, len(live) + 1))
    assert (live[0].kind, live[-1].kind) == ("experiment.created", "experiment.completed")
    assert list(client.watch(created.experiment_id)) == live  # and when it has ended
    assert list(client.watch(created.experiment_id, after=100)) == live[100:]
    completed = list(client.watch(created.experiment_id, kinds=["run.completed"]))
    assert sorted(event.run_index or 0 for event in completed) == list(range(40))


def test_messages_tell_how_it_stands_and_go_on_after_a_token(client: Client) -> None:
    created = client.create(SLOW)
    messages = list(client.follow(created.experiment_id))
    assert messages[0].snapshot is not None
    assert messages[-1].terminal is not None
    again = list(client.follow(created.experiment_id, resume_token=messages[0].resume_token))
    events = [message for message in messages if message.event is not None]
    assert [message for message in again if message.event is not None] == events
    with pytest.raises(ResumeTokenInvalid):
        next(client.follow(created.experiment_id, resume_token="rubbish"))


def test_an_experiment_is_steered_while_it_runs(client: Client) -> None:
    name = client.create(SLOW | {"tags": ["steered"], "inputs": [{"n": n} for n in range(200)]}).experiment_id
    assert client.pause(name).state is ExperimentState.PAUSED
    changed = client.update(name, max_concurrency=5, budget_usd=0.1)
    assert (changed.max_concurrency, changed.budget_nanousd) == (5, 100_000_000)
    assert client.resume(name).state in (ExperimentState.PENDING, ExperimentState.RUNNING)
    assert [found.experiment_id for found in client.list(tags=["steered"])] == [name]
    client.cancel(name)
    result = client.wait(name)
    assert (result.state, result.passed) == (ExperimentState.CANCELLED, False)
    assert list(client.list(tags=["steered"], states=[ExperimentState.RUNNING])) == []
    assert len(list(client.list(tags=["steered"], states=["CANCELLED"]))) == 1
    client.delete(name)
    with pytest.raises(ExperimentNotFound):
        client.get(name)


def test_failed_runs_are_retried(client: Client) -> None:
    result = client.run({"model": "broken/echo", "prompt": "well?"})
    assert (result.state, result.passed) == (ExperimentState.COMPLETED, False)
    [failed] = result.rows()
    assert failed.error is not None
    assert failed.error.reason == "PROVIDER_REJECTED"
    client.retry(result.experiment_id)
    assert client.wait(result.experiment_id).experiment.generation == 2


def test_it_says_what_would_be_run(client: Client) -> None:
    assert client.validate("capitals.yaml").runs == 2
    [stage] = client.render("capitals.yaml", 1).stages
    assert [message.content for message in stage.messages] == ["The capital of Japan"]
    assert "mock/echo" in [model.model for model in client.models()]
    assert "icontains" in [scorer.type for scorer in client.scorers()]


def test_failures_are_domain_errors(client: Client, here: Path) -> None:
    with pytest.raises(InvalidArgument, match="'done' is not a valid ExperimentState: use one of PENDING, "):
        list(client.list(states=["done"]))
    (here / "wrong.yaml").write_text("model: mock/echo\nprompt: '{{ input.'\nrepeat: 2")
    with pytest.raises(InvalidExperiment, match=r"wrong\.yaml:3: .*repeats"):
        client.run("wrong.yaml")
    with pytest.raises(InvalidExperiment, match="no model 'parrot'"):
        client.run({"model": "mock/parrot", "prompt": "well?"})
    with pytest.raises(ExperimentNotFound, match="no experiment 'gone'"):
        list(client.watch("gone"))
    with pytest.raises(ExperimentNotFound, match="no experiment 'gone'"):
        next(client.rows("gone"))
    with Client("nowhere") as wrong, pytest.raises(InvalidArgument, match="write HOST:PORT"):
        wrong.get("abc")


def test_a_client_may_be_used_again_after_nobody_answered(address: str, here: Path, unused_tcp_port: int) -> None:
    with Client(f"127.0.0.1:{unused_tcp_port}") as client:
        for _ in range(2):
            with pytest.raises(ServiceUnavailable, match="no runner answers"):
                client.get("abc")


async def test_it_works_inside_of_a_running_loop(address: str, here: Path) -> None:
    result = run("capitals.yaml", address)
    assert [found.output for found in result.rows()] == ["The capital of France", "The capital of Japan"]


def test_threads_share_a_client(client: Client) -> None:
    def outputs(number: int) -> list[str | None]:
        done = client.run({"model": "mock/echo", "prompt": f"number {number}"})
        return [found.output for found in done.rows()]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(outputs, range(12))) == [[f"number {number}"] for number in range(12)]


def test_no_thread_is_left_after_close(address: str, here: Path) -> None:
    before = set(threading.enumerate())
    with Client(address) as client:
        events = client.watch(client.create(SLOW).experiment_id)
        next(events)
        next(client.list())  # forgotten
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) == before
    with pytest.raises(RuntimeError, match="is closed: make a new one"):
        client.get("abc")
    with pytest.raises(RuntimeError, match="is closed: make a new one"):
        list(events)


def test_without_a_server_experiments_run_in_this_process(here: Path) -> None:
    result = run("capitals.yaml")
    assert result.passed
    assert [found.output for found in result.rows()] == ["The capital of France", "The capital of Japan"]
    assert (here / ".promptlooper/promptlooper.db").exists()
    home = here / "elsewhere"
    with Client(home=home) as client:
        name = client.create("capitals.yaml").experiment_id
        assert worked_on(home) == {name}
        assert client.wait(name).passed
        assert worked_on(home) == frozenset()
        client.create("capitals.yaml")
    assert worked_on(home) == frozenset()


FORGETFUL = """
from promptlooper.client import Client
client = Client({address!r}, home="data")
experiment = client.create("capitals.yaml")
print(next(client.watch(experiment.experiment_id)).kind)
"""
BASE_ONLY = """
import sys
for name in "yaml jinja2 sqlalchemy alembic httpx aiohttp redis re2 rich dotenv pandas pyarrow".split():
    sys.modules[name] = None
from promptlooper.client import MissingPackage, run
print(run("capitals.yaml", {address!r}).passed)
try:
    run("capitals.yaml")
except MissingPackage as error:
    print(error)
"""


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("remote", [True, False])
def test_a_process_that_closes_nothing_ends_quietly(address: str, here: Path, remote: bool) -> None:
    ended = python(FORGETFUL.format(address=address if remote else None))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "experiment.created\n", "")


def test_with_a_server_the_base_packages_are_enough(address: str, here: Path) -> None:
    ended = python(BASE_ONLY.format(address=address))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(
        "True\nWithout the address of a server, experiments run in this process, which needs"
    )
    assert "pip install 'promptlooper[local]'" in ended.stdout
