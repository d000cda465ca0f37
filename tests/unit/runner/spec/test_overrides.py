"""Flags: they change an experiment before it is checked, and are named where they are wrong."""

# ruff: noqa: E501 (tables are read best with one case a line)

from __future__ import annotations

from typing import Any

import pytest

from promptlooper.experiment import CacheMode, ModelEntry
from promptlooper.runner.spec.overrides import Overrides

FILE = """\
name: x
tags: [demo]
metadata: {owner: search}
config: {tone: formal, n: 1}
inputs:
  - {lang: fr, n: 1, _tags: [hard]}
  - {lang: de, n: 2}
  - {lang: fr, n: 3, _tags: [hard, long]}
models:
  - a/b
  - {name: low, model: a/c, params: {effort: low}}
params: {max_tokens: 32}
sweep: {temperature: [0, 1]}
pipelines:
  direct: [{prompt: "{{ config.tone }} {{ input.lang }}"}]
  long:
    models: [a/b]
    stages: [{prompt: a}, {prompt: b, params: {max_tokens: 8}}]
"""


def test_flags_set_what_the_file_says(desk: Any) -> None:
    spec = desk.spec(
        FILE,
        Overrides(
            name="y",
            project="p",
            params={"max_tokens": 5, "stop": "x"},
            repeats=4,
            config={"tone": "plain"},
            tags=("new", "demo"),
            metadata={"team": "a"},
            budget_usd=0.5,
            concurrency=3,
            cache_mode="off",
        ),
    )
    assert (spec.name, spec.project, spec.repeats) == ("y", "p", 4)
    assert spec.params == {"max_tokens": 5, "stop": ["x"]}
    assert spec.config == {"tone": "plain", "n": 1}
    assert (spec.tags, spec.metadata) == (("demo", "new"), {"owner": "search", "team": "a"})
    assert (spec.limits.budget_nanousd, spec.limits.max_concurrency) == (500_000_000, 3)
    assert spec.cache.mode is CacheMode.OFF


def test_models_of_a_flag_take_the_place_of_all_lists_and_know_the_entries_of_the_file(desk: Any) -> None:
    spec = desk.spec(FILE, Overrides(models=("low", "z/new")))
    wanted = (ModelEntry("low", "a/c", {"effort": "low"}), ModelEntry("z/new", "z/new"))
    assert [pipeline.models for pipeline in spec.pipelines] == [wanted, wanted]


@pytest.mark.parametrize(
    ("overrides", "numbers"),
    [
        (Overrides(first=2), [1, 2]),
        (Overrides(first=99), [1, 2, 3]),
        (Overrides(filters=(("input.lang", "fr"),)), [1, 3]),
        (Overrides(filters=(("input.lang", "fr"), ("input.n", "3"))), [3]),
        (Overrides(filters=(("input.n", "1"), ("input.n", "2"))), [1, 2]),
        (Overrides(filters=(("tag", "long"),)), [3]),
        (Overrides(filters=(("tag", "hard"),), first=1), [1]),
        (Overrides(sample=9), [1, 2, 3]),
    ],
)
def test_inputs_are_filtered_sampled_and_cut(desk: Any, overrides: Overrides, numbers: list[int]) -> None:
    assert [row.value["n"] for row in desk.spec(FILE, overrides).inputs] == numbers


def test_sample_of_a_flag_is_the_same_for_a_seed(desk: Any) -> None:
    found = [
        tuple(row.value["n"] for row in desk.spec(FILE, Overrides(sample=1, seed=seed)).inputs) for seed in range(20)
    ]
    assert found == [
        tuple(row.value["n"] for row in desk.spec(FILE, Overrides(sample=1, seed=seed)).inputs) for seed in range(20)
    ]
    assert set(found) == {(1,), (2,), (3,)}


def test_pipelines_and_models_are_filtered_and_fields_still_know_their_place(desk: Any) -> None:
    read = desk.read(FILE, Overrides(filters=(("pipeline", "long"),)))
    assert [pipeline.name for pipeline in read.spec.pipelines] == ["long"]
    assert read.origin("pipelines[0].stages[1].messages[0].content").line == 18
    read = desk.read(FILE, Overrides(filters=(("model", "low"),)))
    assert [[entry.name for entry in pipeline.models] for pipeline in read.spec.pipelines] == [["low"]]
    assert read.origin("pipelines[0].models[0].model").line == 11
    by_model = desk.spec(FILE, Overrides(filters=(("model", "a/c"),)))
    assert by_model.pipelines == read.spec.pipelines
    assert desk.read(FILE, Overrides(first=1, filters=(("tag", "long"),))).origin("inputs[0]").line == 8


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (Overrides(filters=(("pipeline", "drect"),)), "--filter pipeline=drect: no pipeline matches this filter; did you mean 'direct'?"),
        (Overrides(filters=(("model", "lwo"),)), "--filter model=lwo: no model matches this filter; did you mean 'low'?"),
        (Overrides(filters=(("tag", "easy"),)), "--filter tag=easy: no input matches this filter"),
        (Overrides(filters=(("input.lang", "es"),)), "--filter input.lang=es: no input matches this filter"),
        (Overrides(filters=(("input.lnag", "fr"),)), "--filter input.lnag=fr: no input has 'lnag'; did you mean 'lang'?"),
        (Overrides(filters=(("pipline", "x"),)), "--filter pipline=x: a filter is pipeline=, model=, tag= or input.KEY=, not 'pipline'"),
        (Overrides(params={"top_p": "hot"}), "-p top_p=hot: 'top_p' must be a number, not the text 'hot'"),
        (Overrides(params={"temperature": 1}), "-p temperature=1: this changes nothing: 'temperature' is set by the sweep"),
        (Overrides(project="My P"), "--project: the project 'My P' must be"),
        (Overrides(repeats=0), "--repeats: 'repeats' must be from 1"),
        (Overrides(first=0), "-n: 0 is not a number of inputs"),
        (Overrides(sample=-1), "--sample: -1 is not a number of inputs"),
        (Overrides(models=("gpt",)), "-m gpt: 'gpt' is not PROVIDER/MODEL, nor a name in 'models'"),
        (Overrides(models=("a/b", "a/b")), "-m a/b: two models are named 'a/b'"),
        (Overrides(tags=("a,b",)), "--tag a,b: the tag 'a,b' must be"),
        (Overrides(budget_usd=-1), "--budget-usd: budget_usd: the number -1 is not an amount of dollars"),
        (Overrides(concurrency=0), "-j: 'max_concurrency' must be from 1"),
        (Overrides(cache_mode="fast"), "--cache: the cache mode must be 'off', 'read_write'"),
    ],
)  # fmt: skip
def test_bad_flag_is_named_instead_of_a_line(desk: Any, overrides: Overrides, said: str) -> None:
    problems = desk.problems(FILE, overrides)
    assert len(problems) == 1
    assert problems[0].startswith(said)


def test_model_of_a_flag_that_no_stage_would_use_is_refused(desk: Any) -> None:
    text = "pipelines: {p: [{prompt: a, model: x/y}]}\n"
    assert desk.problems(text, Overrides(models=("a/b",))) == [
        "-m a/b: this changes nothing: every stage names its own model"
    ]


def test_flags_work_where_the_file_has_no_such_section(desk: Any) -> None:
    spec = desk.spec(
        "model: a/b\nprompt: '{{ config.x }}'\n",
        Overrides(config={"x": [1]}, params={"seed": 1}, budget_usd=1, cache_mode="refresh", metadata={"a": "b"}),
    )
    assert (spec.config, spec.params, spec.limits.budget_nanousd) == ({"x": [1]}, {"seed": 1}, 10**9)
    assert (spec.cache.mode, spec.metadata) == (CacheMode.REFRESH, {"a": "b"})
    assert (
        desk.spec("model: a/b\nprompt: a\ncache: off\n", Overrides(cache_mode="refresh")).cache.mode
        is CacheMode.REFRESH
    )


def test_wrong_section_is_told_of_the_file_and_not_of_the_flag(desk: Any) -> None:
    problems = desk.problems("model: a/b\nprompt: a\nparams: [1]\n", Overrides(params={"seed": 1}))
    assert problems == ["e.yaml:3: params must be a mapping, not a list"]
