"""The Runner's unary RPCs, client to core."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from promptlooper.caching import CacheStats
from promptlooper.clients.runner import connected
from promptlooper.completion import ModelInfo
from promptlooper.errors import (
    ERRORS_BY_REASON,
    CompletionFailed,
    InvalidArgument,
    InvalidExperiment,
    Problem,
    ServiceUnavailable,
    TooLarge,
)
from promptlooper.experiment import (
    ExperimentSpec,
    ExperimentState,
    InputRow,
    Limits,
    MessageTemplate,
    ModelEntry,
    Pipeline,
    Stage,
)
from promptlooper.experiments import ExperimentFilter, Validation
from promptlooper.rpc.client import domain_errors
from promptlooper.run import RunState
from promptlooper.scoring import ScorerInfo
from promptlooper.v1 import runner_service_pb2 as pb
from promptlooper.v1.runner_service_pb2_grpc import RunnerServiceStub

SPEC = ExperimentSpec(
    "capitals",
    (Pipeline("p", (Stage((MessageTemplate("user", "hi {{ input }}"),)),), (ModelEntry("m", "mock/m"),)),),
    (InputRow("", 3), InputRow("b", [None, 0, "", False])),
)


async def test_experiment_is_created_with_its_request_id(runner: Any, known: Any) -> None:
    assert await runner.client.create(SPEC, "r-1") == known["experiment"]
    assert runner.core.calls == [("create", SPEC, "r-1")]


async def test_what_the_channel_may_send_again_always_has_a_request_id(runner: Any) -> None:
    """So that it is done once, though nobody gave it one."""
    await runner.client.create(SPEC)
    await runner.client.create(SPEC)
    await runner.client.resume("exp1")
    await runner.client.retry("exp1")
    ids = [call[-1] for call in runner.core.calls]
    assert len({*ids}) == 4
    assert all(ids)


async def test_experiment_is_validated(runner: Any) -> None:
    assert await runner.client.validate(SPEC) == Validation((Problem("repeats", "too many", "a.yaml", 3),), 4, 8, None)
    assert runner.core.calls == [("validate", SPEC)]


async def test_experiments_are_read_cancelled_and_deleted(runner: Any, known: Any) -> None:
    assert await runner.client.get("exp1") == known["experiment"]
    assert await runner.client.cancel("exp1") == known["ended"]
    await runner.client.delete("exp1")
    assert await runner.client.summarize("exp1") == known["summary"]
    assert runner.core.calls == [("get", "exp1"), ("cancel", "exp1"), ("delete", "exp1"), ("summarize", "exp1")]


async def test_experiments_are_listed_with_every_filter(runner: Any, known: Any) -> None:
    where = ExperimentFilter("p", ("a", "b"), {"k": "v"}, (ExperimentState.PENDING, ExperimentState.FAILED), "ex")
    page = await runner.client.list_experiments(where, 7, "token")
    assert (page.experiments, page.next_page_token) == ((known["experiment"], known["ended"]), "next")
    assert runner.core.calls == [("list_experiments", where, 7, "token")]


@pytest.mark.parametrize("full", [True, False])
async def test_runs_are_listed_in_the_view_that_was_asked_for(runner: Any, known: Any, full: bool) -> None:
    page = await runner.client.list_runs("exp1", 3, "t", (RunState.FAILED,), full=full)
    assert (page.runs, page.next_page_token) == ((known["run_of"](0), known["run_of"](1)), "more")
    assert runner.core.calls == [("list_runs", "exp1", 3, "t", [RunState.FAILED], full)]


async def test_run_is_read_in_full(runner: Any, known: Any) -> None:
    assert await runner.client.get_run("exp1-0") == known["run_of"](0)
    assert runner.core.calls == [("get_run", "exp1-0")]


async def test_cancelled_run_comes_without_texts(runner: Any, known: Any) -> None:
    basic = replace(known["run_of"](3), input=None, expected=None, output=None, stages=())
    assert await runner.client.cancel_run("exp1-3") == basic


async def test_models_scorers_and_cache_are_told(runner: Any) -> None:
    async with connected(runner.address) as client:
        assert await client.list_models() == [ModelInfo("mock/echo", "mock", True)]
        assert await client.list_scorers() == [ScorerInfo("exact", "equal", {}, {}, True)]
        assert await client.cache_stats() == CacheStats("redis", 1, 2, 3, 4)
        assert await client.purge_cache("default.default") == 5
    assert runner.core.calls[-1] == ("purge_cache", "default.default", "")


@pytest.mark.parametrize("reason", sorted(set(ERRORS_BY_REASON) - {"INVALID_EXPERIMENT"}))
async def test_error_is_raised_again_with_its_facts(runner: Any, reason: str) -> None:
    error = ERRORS_BY_REASON[reason]("what to do", experiment_id="exp1")
    if isinstance(error, CompletionFailed):
        error.attempts = 2
    runner.core.error = error
    with pytest.raises(ERRORS_BY_REASON[reason]) as caught:
        await runner.client.get("exp1")
    assert (type(caught.value), caught.value.reason) == (type(error), reason)
    assert (caught.value.message, caught.value.metadata) == ("what to do", {"experiment_id": "exp1"})


async def test_every_problem_of_an_experiment_is_raised_again(runner: Any) -> None:
    problems = (Problem("pipelines[0].name", "is there twice"), Problem("", "has no inputs"))
    runner.core.error = InvalidExperiment(problems)
    with pytest.raises(InvalidExperiment) as caught:
        await runner.client.create(SPEC)
    assert caught.value.problems == problems


async def test_budget_of_zero_is_refused_before_anything_is_sent(runner: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"spec\.limits\.budget_nanousd"):
        await runner.client.create(replace(SPEC, limits=Limits(budget_nanousd=0)))
    assert runner.core.calls == []


async def test_experiment_that_is_too_large_for_a_message_is_refused(runner: Any) -> None:
    large = replace(SPEC, files={"a": "x" * 5_000_000})
    sentence = (
        r"the experiment has 5,000,\d+ bytes with its inputs, and at most 4,194,304 can be sent to .*without --server"
    )
    for ask in (runner.client.create, runner.client.validate):
        with pytest.raises(TooLarge, match=sentence):
            await ask(large)
    assert runner.core.calls == []


async def test_runner_that_is_not_there_is_named(unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    async with connected(address) as client:
        with pytest.raises(ServiceUnavailable, match=f"no runner answers at {address}: start it"):
            await client.get("x")


@pytest.mark.parametrize(
    ("method", "request_message", "field"),
    [
        ("CreateExperiment", pb.CreateExperimentRequest(spec={"params_json": "{"}), "spec.params_json"),
        ("ValidateExperiment", pb.ValidateExperimentRequest(spec={"config_json": "1"}), "spec.config_json"),
        ("ListExperiments", pb.ListExperimentsRequest(states=[42]), "states[0]"),
        ("ListRuns", pb.ListRunsRequest(states=[1, 42]), "states[1]"),
        ("ListRuns", pb.ListRunsRequest(view=42), "view"),
    ],
    ids=["create", "validate", "experiments", "runs", "view"],
)
async def test_request_that_is_wrong_is_refused_by_name_of_its_field(
    runner: Any, method: str, request_message: Any, field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught, domain_errors(runner.address):
        await getattr(RunnerServiceStub(runner.channel), method)(request_message)
    assert caught.value.metadata == {"field": field}
    assert runner.core.calls == []
