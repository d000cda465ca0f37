"""What the wire says by default, and what it refuses with the name of the field."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

from promptlooper.completion import CompletionRequest, Message
from promptlooper.errors import ERRORS_BY_REASON, CompletionFailed, DomainError, InvalidArgument
from promptlooper.experiment import (
    CacheMode,
    CachePolicy,
    ExperimentSpec,
    InputRow,
    Limits,
    MessageTemplate,
    ModelEntry,
    Pipeline,
    Stage,
)
from promptlooper.v1 import (
    adapter_service_pb2,
    cache_service_pb2,
    completion_pb2,
    error_reason_pb2,
    experiment_pb2,
    run_pb2,
    runner_service_pb2,
    scorer_service_pb2,
)
from promptlooper.wire import caching, completion, experiment, experiments, run, scoring
from promptlooper.wire.scalars import EnumOnWire


@pytest.mark.parametrize("enum", [caching.STATUSES, experiment.CACHE_MODES, experiments.STATES, run.RUN_STATES])
def test_enums_are_total_both_ways(enum: EnumOnWire[Any]) -> None:
    numbers = {number for number in enum.proto.values() if number}
    assert {enum.number(member) for member in enum.members} == numbers
    assert {enum.member(number, "state") for number in numbers} == set(enum.members)


def test_finish_reasons_are_total_both_ways() -> None:
    for number in completion_pb2.FinishReason.values():
        assert completion.finish_reason_number(completion.finish_reason_name(number)) == number
    assert completion.finish_reason_name(99) == "other"


def test_unknown_enum_number_is_refused_by_name_of_its_field() -> None:
    message = experiment_pb2.ExperimentSpec(cache=experiment_pb2.CachePolicy(mode=99))
    with pytest.raises(InvalidArgument, match=r"spec\.cache\.mode: 99 is not .* CACHE_MODE_REFRESH") as caught:
        experiment.spec_from_pb(message)
    assert caught.value.metadata == {"field": "spec.cache.mode"}


def test_unspecified_state_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"states\[1\]: 0 is not"):
        experiments.filter_from_pb(runner_service_pb2.ListExperimentsRequest(states=[1, 0]))


def test_empty_spec_has_the_documented_defaults() -> None:
    spec = experiment.spec_from_pb(experiment_pb2.ExperimentSpec(name="x"))
    assert spec == ExperimentSpec(name="x", pipelines=(), inputs=())
    assert (spec.project, spec.sweep, spec.repeats, spec.limits) == ("default", ({},), 1, Limits())
    assert spec.cache == CachePolicy(CacheMode.READ_WRITE, None, "default")


def test_empty_names_and_ids_have_the_documented_defaults() -> None:
    message = experiment_pb2.ExperimentSpec(
        inputs=[experiment_pb2.InputRow(value_json="3")],
        pipelines=[
            experiment_pb2.Pipeline(
                models=[experiment_pb2.ModelEntry(model="openai/gpt-5")],
                stages=[experiment_pb2.Stage(messages=[experiment_pb2.MessageTemplate(role="user", content="hi")])],
            )
        ],
        scorers=[experiment_pb2.ScorerSpec(type="exact")],
    )
    spec = experiment.spec_from_pb(message)
    assert spec.inputs == (InputRow("", 3),)
    assert spec.pipelines == (
        Pipeline("", (Stage((MessageTemplate("user", "hi"),)),), (ModelEntry("openai/gpt-5", "openai/gpt-5"),)),
    )
    assert (spec.scorers[0].name, spec.scorers[0].weight, spec.scorers[0].threshold) == ("exact", 1.0, None)


@pytest.mark.parametrize("part", ["models", "stages"])
def test_concurrency_of_a_local_model_is_two_by_default(part: str) -> None:
    pipeline = experiment_pb2.Pipeline()
    getattr(pipeline, part).add(model="local/smollm2-135m-instruct")
    message = experiment_pb2.ExperimentSpec(pipelines=[pipeline])
    assert experiment.spec_from_pb(message).limits.max_concurrency == 2
    message.limits.max_concurrency = 7
    assert experiment.spec_from_pb(message).limits.max_concurrency == 7


def test_request_without_timeout_gets_sixty_seconds() -> None:
    assert completion.request_from_pb(completion_pb2.CompletionRequest(model="mock/x")).timeout == 60.0


def spec_with(**fields: Any) -> experiment_pb2.ExperimentSpec:
    return experiment_pb2.ExperimentSpec(**fields)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (spec_with(config_json="{"), "spec.config_json"),
        (spec_with(params_json="[1]"), "spec.params_json"),
        (spec_with(params_json="null"), "spec.params_json"),
        (spec_with(sweep=[{}, {"params_json": "1"}]), "spec.sweep[1].params_json"),
        (spec_with(inputs=[{"value_json": "nope"}]), "spec.inputs[0].value_json"),
        (spec_with(inputs=[{"expected_json": "'x'"}]), "spec.inputs[0].expected_json"),
        (spec_with(pipelines=[{"models": [{"params_json": '"x"'}]}]), "spec.pipelines[0].models[0].params_json"),
        (spec_with(pipelines=[{"stages": [{"params_json": "{]"}]}]), "spec.pipelines[0].stages[0].params_json"),
        (spec_with(pipelines=[{"stages": [{"timeout_ms": -1}]}]), "spec.pipelines[0].stages[0].timeout_ms"),
        (spec_with(scorers=[{"value_json": "NaN"}]), "spec.scorers[0].value_json"),
        (spec_with(scorers=[{"settings_json": "true"}]), "spec.scorers[0].settings_json"),
        (spec_with(files=[{"name": "a"}, {"name": "a"}]), "spec.files"),
        (spec_with(gates=[{"min_scores": [{"scorer": "a"}, {"scorer": "a"}]}]), "spec.gates[0].min_scores"),
        (spec_with(cache={"max_age_ms": -5}), "spec.cache.max_age_ms"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_refused_by_name_of_its_field(
    message: experiment_pb2.ExperimentSpec, field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        experiment.spec_from_pb(message)
    assert caught.value.metadata == {"field": field}
    assert caught.value.message.startswith(f"{field}: ")


def test_other_messages_name_their_fields_too() -> None:
    call = scorer_service_pb2.ScorerCall(settings_json="[]")
    with pytest.raises(
        InvalidArgument, match=r"items\[0\]\.calls\[0\]\.settings_json: must be a JSON object, not a list"
    ):
        scoring.item_from_pb(scorer_service_pb2.ScoreItem(calls=[call]), "items[0]")
    with pytest.raises(InvalidArgument, match=r"items\[2\]\.max_age_ms: must not be negative"):
        caching.lookup_from_pb(cache_service_pb2.LookupItem(max_age_ms=-1), "items[2]")
    with pytest.raises(InvalidArgument, match=r"request\.sampling\.extra_json: is not JSON"):
        completion.request_from_pb(
            completion_pb2.CompletionRequest(sampling=completion_pb2.Sampling(extra_json="{'a': 1}"))
        )


def test_parameter_that_is_set_twice_is_refused() -> None:
    sampling = completion_pb2.Sampling(temperature=0, extra_json='{"temperature": 1}')
    with pytest.raises(InvalidArgument, match="'temperature' is set already"):
        completion.params_from_pb(sampling)


def test_known_parameters_are_typed_and_others_are_not() -> None:
    params = {"temperature": 0, "max_tokens": 5, "stop": ["a"], "seed": 2**63, "top_p": True, "logprobs": None, "k": 1}
    sampling = completion.params_to_pb(params)
    assert sampling.HasField("temperature")
    assert (sampling.temperature, sampling.max_tokens, list(sampling.stop)) == (0.0, 5, ["a"])
    assert sampling.extra_json == '{"seed":9223372036854775808,"top_p":true,"k":1}'
    assert completion.params_to_pb({"stop": "END"}).extra_json == '{"stop":"END"}'


def test_budget_of_zero_is_not_sent_as_no_budget() -> None:
    with pytest.raises(InvalidArgument, match="budget_nanousd: must be more than 0"):
        experiment.limits_to_pb(Limits(budget_nanousd=0))


@pytest.mark.parametrize("repeats", [2**40, -(2**40)])
def test_number_that_does_not_fit_is_refused_before_it_is_sent(repeats: int) -> None:
    with pytest.raises(InvalidArgument, match="spec: holds a value that cannot be sent"):
        experiment.spec_to_pb(ExperimentSpec("x", (), (), repeats=repeats))


def test_value_without_json_text_is_refused_before_it_is_sent() -> None:
    request = CompletionRequest("mock/x", (Message("user", "hi"),), {"n": 2**70})
    with pytest.raises(InvalidArgument, match=r"sampling\.extra_json: cannot be written as JSON"):
        completion.request_to_pb(request)


def test_age_below_a_millisecond_is_not_sent_as_any_age() -> None:
    assert experiment.cache_to_pb(CachePolicy(max_age=0.0)).max_age_ms == 1


@pytest.mark.parametrize("reason", sorted(ERRORS_BY_REASON))
def test_item_error_keeps_class_message_and_facts(reason: str) -> None:
    sent = completion.error_from_pb(
        adapter_service_pb2.CompletionError(
            reason=reason,
            message="what to do",
            metadata={"provider": "x", "message": "y"},
            retry_after_ms=0,
            attempts=3,
        )
    )
    error = completion.error_from_pb(completion.error_to_pb(sent))
    assert type(error) is ERRORS_BY_REASON[reason]
    assert (error.reason, error.message, error.retry_after) == (reason, "what to do", 0.0)
    assert error.metadata == {"provider": "x", "message": "y"}
    assert not isinstance(error, CompletionFailed) or error.attempts == 3


def test_item_error_of_an_unknown_reason_keeps_its_reason() -> None:
    error = completion.error_from_pb(adapter_service_pb2.CompletionError(reason="NEWER", message="m"))
    assert (type(error), error.reason, error.retry_after) == (DomainError, "NEWER", None)


def test_every_reason_of_an_error_is_in_the_proto() -> None:
    names = {name.removeprefix("ERROR_REASON_") for name, _ in error_reason_pb2.ErrorReason.items()}
    assert set(ERRORS_BY_REASON) <= names


def test_enum_without_a_proto_value_fails_at_import() -> None:
    class Mode(Enum):
        NEW = "new"

    with pytest.raises(ValueError, match="RUN_STATE_NEW"):
        EnumOnWire(Mode, run_pb2.RunState, "RUN_STATE_")
