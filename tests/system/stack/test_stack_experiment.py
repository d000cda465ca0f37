"""Experiments on a whole stack: through our command line, and through a gRPC client that is not ours."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stack_lab import CommandLine

EXPERIMENT = """\
name: echoes
inputs:
  - {country: France, expected: Paris}
  - {country: Japan, expected: Tokyo}
model: mock/echo
prompt: "Is it {{ expected }}, {{ input.country }}?"
scorers:
  - {icontains: "{{ expected }}", threshold: 1}
"""
SPEC = {
    "name": "by reflection",
    "inputs": [{"valueJson": '{"country":"France"}'}, {"valueJson": '{"country":"Japan"}'}],
    "pipelines": [
        {
            "name": "direct",
            "models": [{"model": "slow/any"}],
            "stages": [{"messages": [{"role": "user", "content": "Where is {{ input.country }}?"}]}],
        }
    ],
    "scorers": [{"name": "asks", "type": "contains", "valueJson": '"{{ input.country }}"'}],
}


def buf_curl(address: str, *words: str) -> str:
    """What a client prints that knows nothing of us but the address."""
    buf = Path(sysconfig.get_path("scripts"), "buf")
    done = subprocess.run(
        [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *words[:-1], f"http://{address}{words[-1]}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def documents(text: str) -> list[dict[str, Any]]:
    """The JSON documents of a stream, one after another."""
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def test_an_experiment_runs_on_the_stack_and_can_be_watched_from_elsewhere(stack: CommandLine) -> None:
    (stack.folder / "promptlooper.yaml").write_text(EXPERIMENT)
    server = stack.server()
    ran = stack("run", "--server", server, "-o", "rows.jsonl")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = [json.loads(line) for line in (stack.folder / "rows.jsonl").read_text().splitlines()]
    assert [(row["state"], row["output"], row["score"]) for row in rows] == [
        ("COMPLETED", "Is it Paris, France?", 1.0),
        ("COMPLETED", "Is it Tokyo, Japan?", 1.0),
    ]
    watched = stack("watch", "latest", "--server", server)
    assert watched.returncode == 0, watched.stdout + watched.stderr
    assert not (stack.folder / ".promptlooper" / "promptlooper.db").exists()


def test_an_equal_experiment_is_answered_by_the_cache(stack: CommandLine) -> None:
    (stack.folder / "again.yaml").write_text(EXPERIMENT.replace("Is it", "Might it be"))
    results = []
    for _ in range(2):
        ran = stack("run", "again.yaml", "--server", stack.server(), "--json")
        assert ran.returncode == 0, ran.stdout + ran.stderr
        results.append(json.loads(ran.stdout)["counts"]["cached"])
    assert results == [0, 2]


@pytest.mark.parametrize("kind", ["runner", "adapter", "cache", "scorer"])
def test_every_service_is_listed_by_reflection_and_answers_health(stack: CommandLine, kind: str) -> None:
    address = next(str(row["address"]) for row in stack.status() if row["kind"] == kind)
    service = f"promptlooper.v1.{kind.capitalize()}Service"
    methods = buf_curl(address, "--list-methods", "").split()
    assert any(method.startswith(f"{service}/") for method in methods)
    said = buf_curl(address, "-d", json.dumps({"service": service}), "/grpc.health.v1.Health/Check")
    assert json.loads(said) == {"status": "SERVING"}


def test_a_client_that_is_not_ours_creates_an_experiment_and_watches_it_to_its_end(stack: CommandLine) -> None:
    address, runner = stack.server(), "/promptlooper.v1.RunnerService"
    services = buf_curl(address, "--list-services", "").split()
    assert "promptlooper.v1.RunnerService" in services

    created = json.loads(buf_curl(address, "-d", json.dumps({"spec": SPEC}), f"{runner}/CreateExperiment"))
    experiment_id = created["experiment"]["experimentId"]
    watched = documents(
        buf_curl(address, "-d", json.dumps({"experimentId": experiment_id}), f"{runner}/WatchExperiment")
    )
    first, *between, last = watched
    assert "snapshot" in first
    assert last["terminal"]["state"] == "EXPERIMENT_STATE_COMPLETED"
    assert last["terminal"]["counts"]["completed"] == "2"
    assert [message["event"]["kind"] for message in between if "event" in message][-3:] == [
        "run.completed",
        "run.completed",
        "experiment.completed",
    ]
    sequence = [int(message["eventSeq"]) for message in between if "event" in message]
    assert sequence == list(range(int(first["eventSeq"]) + 1, int(last["eventSeq"]) + 1))
