"""Sources, rendered runs, and runs that are asked for one at a time: client to core."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from promptlooper.errors import FilesMissing, InvalidArgument, InvalidExperiment, Problem, ServiceUnavailable
from promptlooper.experiment import ExperimentSpec, InputRow, MessageTemplate, ModelEntry, Pipeline, Stage
from promptlooper.experiments import Execution, OutputDelta, StartedRun
from promptlooper.rpc.client import domain_errors
from promptlooper.sources import ExperimentSource, FilePiece, FileReference, RunTarget, Uploaded
from promptlooper.v1 import runner_service_pb2 as pb
from promptlooper.v1.runner_service_pb2_grpc import RunnerServiceStub

SPEC = ExperimentSpec(
    "capitals",
    (Pipeline("p", (Stage((MessageTemplate("user", "hi"),)),), (ModelEntry("m", "mock/m"),)),),
    (InputRow("", 3),),
)
SOURCE = ExperimentSource("prompt: hä\n", "my/exp.yaml", (FileReference("a/b.csv", "0" * 64, 7),))


async def test_sources_and_files_travel_as_they_are(runner: Any, known: Any) -> None:
    assert await runner.client.create(SOURCE, "r") == known["experiment"]
    (problem,) = (await runner.client.validate(SOURCE)).problems
    assert problem == Problem("repeats", "too many", "a.yaml", 3)
    piece = FilePiece("1" * 64, 3, 0, b"\x00\xff\n")
    assert await runner.client.upload(piece) == Uploaded(3, True)
    assert runner.core.calls == [("create", SOURCE, "r"), ("validate", SOURCE), ("upload", piece)]


async def test_files_that_are_missing_are_named_with_what_to_do(runner: Any) -> None:
    missing = [Problem(f"data/{n}.csv", "send it") for n in range(200)]
    runner.core.error = FilesMissing("the experiment names files", missing=missing, count="200")
    with pytest.raises(FilesMissing, match="names files") as raised:
        await runner.client.create(SOURCE)
    assert raised.value.metadata == {"count": "200"}
    told = raised.value.missing
    assert list(told) == missing[: len(told)]
    assert 20 < len(told) < 200  # as many as trailers take


async def test_problems_of_a_source_have_their_places(runner: Any) -> None:
    runner.core.error = InvalidExperiment([Problem("repeats", "too many", "a.yaml", 3)])
    with pytest.raises(InvalidExperiment, match=r"a\.yaml:3: too many"):
        await runner.client.create(SOURCE)


async def test_spec_and_source_together_and_a_target_of_nothing_are_refused(runner: Any) -> None:
    stub = RunnerServiceStub(runner.channel)
    spec, source = pb.CreateExperimentRequest().spec, pb.ExperimentSource(text="x")
    for call in (
        stub.CreateExperiment(pb.CreateExperimentRequest(spec=spec, source=source)),
        stub.StartRun(pb.StartRunRequest()),
        stub.RenderRun(pb.RenderRunRequest()),
        stub.StartRun(pb.StartRunRequest(target=pb.RunTarget(experiment_id="e", input_json="{"))),
    ):
        with pytest.raises(InvalidArgument), domain_errors("there"):
            await call


@pytest.mark.parametrize("experiment", [SPEC, SOURCE, "exp1"])
async def test_runs_are_rendered_and_started(runner: Any, known: Any, experiment: Any) -> None:
    assert await runner.client.render(experiment, 1) == known["rendered"]
    for target in (RunTarget(experiment), RunTarget(experiment, "v", None, True), RunTarget(experiment, "", [0], True)):
        assert await runner.client.start_run(target, "r") == StartedRun("exp1-0", known["experiment"])
        assert runner.core.calls[-1] == ("start_run", target, "r")
    await runner.client.start_run(RunTarget(experiment))
    assert runner.core.calls[-1][-1]  # the channel may send it again


@pytest.mark.parametrize("cut_with", [None, ServiceUnavailable("gone")])
async def test_a_watch_of_a_run_that_is_cut_goes_on_without_losing_or_doubling(
    runner: Any, known: Any, cut_with: Any
) -> None:
    runner.core.cut_after, runner.core.cut_with = [2, 1, 2], cut_with
    heard = [message async for message in runner.client.watch_run("exp1-0", bookmark_interval=0.5)]
    assert [message.event_seq for message in heard] == [0, 1, 2, 3, 4, 5, 6, 6]
    assert [message.bookmark for message in heard].index(True) == 4
    assert heard[0].snapshot.run_id == "exp1-0"
    assert heard[-1].terminal == known["run_of"](0)
    assert runner.core.calls[-1] == ("watch_run", "exp1-0", "5", 0.5)


async def test_an_execution_tells_deltas_stages_and_the_run(runner: Any, known: Any) -> None:
    target = RunTarget(SPEC, "v", {"n": 1}, True)
    heard = [message async for message in runner.client.execute_run(target, 20.0)]
    assert heard == [
        Execution(delta=OutputDelta(0, "think", "beç")),
        Execution(stage=known["stage"]),
        Execution(run=known["run_of"](0)),
    ]
    (name, asked, timeout) = runner.core.calls[-1]
    assert (name, asked) == ("execute_run", target)
    assert 0 < timeout <= 20.0


async def test_an_execution_that_its_caller_leaves_ends_in_the_core(runner: Any) -> None:
    runner.core.held.set()
    messages = runner.client.execute_run(RunTarget("exp1"))
    await anext(messages)
    await messages.aclose()
    async with asyncio.timeout(10):
        await runner.core.closed.wait()
