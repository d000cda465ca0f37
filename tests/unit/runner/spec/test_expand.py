"""The grid: variants, labels, precedence, and the cell of every run."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptlooper.completion import Tool
from promptlooper.experiment import ExperimentSpec, InputRow, MessageTemplate, ModelEntry, Pipeline, ScorerSpec, Stage
from promptlooper.jsonvalue import json_text, json_value
from promptlooper.runner.spec.expand import cell, run_index, shape, stage_model, stage_params, variants
from promptlooper.runner.spec.normal import body_sha256, completed, spec_from_json, spec_to_json

HI = (MessageTemplate("user", "Hi"),)


def spec(**changes: Any) -> ExperimentSpec:
    low = ModelEntry("low", "openai/gpt-5", {"effort": "low", "temperature": None, "top_p": 0.5})
    base = ExperimentSpec(
        name="x",
        pipelines=(
            Pipeline("direct", (Stage(HI),), (ModelEntry("a/b", "a/b"), low)),
            Pipeline("long", (Stage(HI, "one"), Stage(HI, "two", params={"max_tokens": 8})), (low,)),
        ),
        inputs=(InputRow("i", 1), InputRow("j", 2)),
        params={"temperature": 0, "max_tokens": 32, "seed": 1},
        sweep=({"temperature": 0.7, "stop": ["a"]}, {"temperature": None}),
        repeats=3,
    )
    return replace(base, **changes)


def test_variants_are_pipelines_times_models_times_points_in_this_order() -> None:
    assert [variant.label for variant in variants(spec())] == [
        'direct · a/b · temperature=0.7 · stop=["a"]',
        "direct · a/b · temperature=null",
        'direct · low · temperature=0.7 · stop=["a"]',
        "direct · low · temperature=null",
        'long · low · temperature=0.7 · stop=["a"]',
        "long · low · temperature=null",
    ]


def test_label_of_the_interface(desk: Any) -> None:
    found = desk.spec(
        "models: [{name: gpt5-low, model: openai/gpt-5}]\nprompts: {direct: Hi}\nsweep: {temperature: [0.7]}\n"
    )
    assert [variant.label for variant in variants(found)] == ["direct · gpt5-low · temperature=0.7"]


def test_stage_wins_over_sweep_over_model_entry_over_params_and_null_is_not_sent() -> None:
    found = variants(spec())
    one = found[2]  # direct, low, 0.7
    assert stage_params(one, one.pipeline.stages[0]) == {
        "temperature": 0.7,
        "max_tokens": 32,
        "seed": 1,
        "effort": "low",
        "top_p": 0.5,
        "stop": ["a"],
    }
    assert one.params == stage_params(one, one.pipeline.stages[0])
    last = found[5]  # long, low, null
    assert stage_params(last, last.pipeline.stages[1]) == {"max_tokens": 8, "seed": 1, "effort": "low", "top_p": 0.5}
    assert stage_params(last, Stage(HI, params={"seed": None, "temperature": 0})) == {
        "temperature": 0,
        "max_tokens": 32,
        "effort": "low",
        "top_p": 0.5,
    }


def test_stage_that_names_another_model_gets_no_parameters_of_the_entry() -> None:
    variant = variants(spec())[3]
    other = Stage(HI, model="x/y")
    assert stage_model(variant, other) == "x/y"
    assert stage_params(variant, other) == {"max_tokens": 32, "seed": 1}
    same = Stage(HI, model="openai/gpt-5")
    assert stage_params(variant, same)["effort"] == "low"
    assert stage_model(variant, Stage(HI)) == "openai/gpt-5"


def test_variant_id_is_12_hex_and_follows_everything_that_makes_it_another_variant() -> None:
    base = spec()
    ids = [variant.variant_id for variant in variants(base)]
    assert len(set(ids)) == 6
    assert all(len(found) == 12 and int(found, 16) >= 0 for found in ids)
    assert ids == [variant.variant_id for variant in variants(replace(base, name="y", repeats=9, inputs=()))]
    assert set(ids).isdisjoint(variant.variant_id for variant in variants(replace(base, params={"temperature": 0})))
    renamed = replace(base, pipelines=(replace(base.pipelines[0], name="other"), base.pipelines[1]))
    assert [variant.variant_id for variant in variants(renamed)][4:] == ids[4:]
    assert set(ids[:4]).isdisjoint(variant.variant_id for variant in variants(renamed))
    again = spec_from_json(json_value(json_text(spec_to_json(base))))
    assert [variant.variant_id for variant in variants(again)] == ids


def test_variant_id_stays_the_same_in_later_versions() -> None:
    assert [variant.variant_id for variant in variants(spec())][:2] == ["d0968bf3c26d", "449852f03c1a"]


def test_runs_count_input_first_then_repeat_pipeline_model_and_point() -> None:
    found = spec()
    grid = shape(found)
    assert grid.total == 2 * 3 * 6
    cells = [cell(grid, index) for index in range(grid.total)]
    wanted = itertools.product(range(2), range(3), range(6))
    assert [(each.input_index, each.repeat, each.variant_index) for each in cells] == list(wanted)


def test_experiment_without_inputs_has_one_row() -> None:
    found = completed(spec(inputs=(), sweep=(), repeats=0, project=""))
    assert [row.value for row in found.inputs] == [None]
    assert found.inputs[0].input_id
    assert (found.sweep, found.repeats, found.project) == (({},), 1, "default")
    assert shape(spec(inputs=(), sweep=(), repeats=1)).total == 3


def test_what_clients_leave_out_is_filled_in() -> None:
    found = completed(
        ExperimentSpec(
            name="x",
            pipelines=(
                Pipeline("p", (Stage(HI, model="a/b"), Stage(HI, model="a/c")), ()),
                Pipeline("q", (Stage(HI),), (ModelEntry("", "a/d"),)),
            ),
            inputs=(InputRow("", {"a": 1}), InputRow("", {"a": 1})),
            scorers=(ScorerSpec("", "exact"),),
        )
    )
    assert [pipeline.models[0].name for pipeline in found.pipelines] == ["a/c", "a/d"]
    assert [row.input_id[16:] for row in found.inputs] == ["", "-2"]
    assert found.scorers[0].name == "exact"
    assert completed(found) == found


def test_equal_ids_of_a_client_are_refused() -> None:
    with pytest.raises(ValueError, match="two rows have the '_id' 'a'"):
        completed(spec(inputs=(InputRow("a", 1), InputRow("a", 2))))


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 30), st.data())
def test_cell_and_run_index_are_each_others_inverse(inputs: int, repeats: int, points: int, data: Any) -> None:
    grid = shape(
        spec(
            inputs=tuple(InputRow(str(i), i) for i in range(inputs)),
            repeats=repeats,
            sweep=tuple({"seed": i} for i in range(points)),
        )
    )
    index = data.draw(st.integers(0, grid.total - 1))
    found = cell(grid, index)
    assert found.input_index < inputs
    assert found.repeat < repeats
    assert found.variant_index < 3 * points
    assert run_index(grid, found.input_index, found.repeat, found.variant_index) == found.run_index == index


@pytest.mark.parametrize("index", [-1, 36])
def test_cell_outside_the_grid_is_refused(index: int) -> None:
    with pytest.raises(IndexError):
        cell(shape(spec()), index)


json_leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | st.text(max_size=5)
json_objects = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), json_leaves | st.lists(json_leaves, max_size=3), max_size=4
)


@given(json_objects, json_objects, st.lists(json_objects, min_size=1, max_size=3), st.lists(json_leaves, max_size=4))
def test_normal_form_comes_back_from_json_and_keeps_its_digest(
    config: dict[str, Any], params: dict[str, Any], sweep: list[dict[str, Any]], values: list[Any]
) -> None:
    found = spec(
        config=config,
        params=params,
        sweep=tuple(sweep),
        inputs=tuple(InputRow(str(i), value, params, ("t",), {"m": "n"}) for i, value in enumerate(values)),
        scorers=(ScorerSpec("s", "exact", config, 0.5, 0.25, "{{ output }}", params),),
    )
    text = json_text(spec_to_json(found))
    assert spec_from_json(json_value(text)) == found
    assert body_sha256(spec_from_json(json_value(text))) == body_sha256(found)
    turned = replace(found, config=dict(reversed(config.items())), params=dict(reversed(params.items())))
    assert body_sha256(turned) == body_sha256(found)
    apart = spec_from_json(json_value(json_text(spec_to_json(found, inputs=False))), found.inputs)
    assert apart == found


def test_bodies_of_different_experiments_differ() -> None:
    base = spec()
    others = [
        replace(base, name="y"),
        replace(base, repeats=4),
        replace(base, params={**base.params, "seed": 2}),
        replace(base, inputs=base.inputs[:1]),
        replace(base, inputs=(InputRow("i", True), base.inputs[1])),
        replace(base, scorers=(ScorerSpec("s", "exact"),)),
        replace(base, limits=replace(base.limits, budget_tokens=1)),
        replace(base, cache=replace(base.cache, max_age=1.0)),
    ]
    assert len({body_sha256(found) for found in (base, *others)}) == len(others) + 1


def test_everything_of_a_stage_comes_back_and_makes_it_another_variant() -> None:
    parts: dict[str, Any] = {
        "images": ("{{ input.photo }}",),
        "tools": (Tool("weather", "of a city", {"type": "object"}),),
        "tool_choice": "required",
        "tool_results": {"weather": "rain"},
        "response_schema": {},
        "retries_on_invalid": 2,
        "continue_conversation": True,
        "for_each": "{{ input.turns }}",
    }
    plain = ("messages", "name", "model", "params", "timeout")
    assert {field.name for field in fields(Stage)} == {*parts, *plain}
    base = spec()
    for name, value in parts.items():
        changed = replace(base, pipelines=(replace(base.pipelines[0], stages=(Stage(HI, **{name: value}),)),))
        assert spec_from_json(json_value(json_text(spec_to_json(changed)))) == changed
        bare = replace(base, pipelines=(replace(base.pipelines[0], stages=(Stage(HI),)),))
        assert variants(changed)[0].variant_id != variants(bare)[0].variant_id, name
