"""Experiment files in their normal form: every short form, every default, every file that is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from promptlooper.errors import Problem
from promptlooper.experiment import (
    CacheMode,
    CachePolicy,
    Gate,
    Limits,
    MessageTemplate,
    ModelEntry,
    Pipeline,
    ScorerSpec,
    Stage,
)
from promptlooper.runner.spec.reading import read_experiment

FULL = """\
version: 1
name: capitals
description: Which prompt finds capitals best?
project: default
tags: [demo]
metadata: {owner: search, year: '2026'}
config: {tone: formal}
files: {handbook: docs/handbook.md}
inputs:
  - {country: France, expected: Paris}
  - {country: Japan, expected: Tokyo}
models:
  - local/smollm2-135m-instruct
  - {name: gpt5-low, model: openai/gpt-5, params: {reasoning_effort: low, temperature: null}}
params: {max_tokens: 32, temperature: 0}
sweep: {temperature: [0, 0.7]}
repeats: 1
pipelines:
  direct:
    - prompt: "What is the capital of {{ input.country }}? Answer with one word."
  reasoned:
    models: [local/smollm2-135m-instruct]
    stages:
      - {name: think, system: "You are a geographer.", prompt: "Say one sentence about {{ input.country }}."}
      - {prompt: "{{ prev_output }} So the capital of {{ input.country }} is", params: {max_tokens: 8}, timeout: 500ms}
scorers:
  - {icontains: "{{ expected }}", threshold: 1}
  - {name: brief, type: max-words, value: 5, weight: 0.5}
  - json-valid
gates: [{min_scores: {icontains: 0.8}, max_failed_runs: 0}]
limits: {max_concurrency: 64, budget_usd: 5, budget_tokens: 1000000, stage_timeout: 60s}
cache: {mode: read_write, max_age: 30d, namespace: default}
"""


def test_the_file_of_the_interface_has_this_normal_form(desk: Any) -> None:
    desk.write("docs/handbook.md", "Use {{ 7*7 }}.\n")
    spec = desk.spec(FULL)
    local = ModelEntry("local/smollm2-135m-instruct", "local/smollm2-135m-instruct")
    low = ModelEntry("gpt5-low", "openai/gpt-5", {"reasoning_effort": "low", "temperature": None})
    assert (spec.name, spec.description, spec.project) == ("capitals", "Which prompt finds capitals best?", "default")
    assert (spec.tags, spec.metadata) == (("demo",), {"owner": "search", "year": "2026"})
    assert (spec.config, spec.files) == ({"tone": "formal"}, {"handbook": "Use {{ 7*7 }}.\n"})
    assert [(row.value, row.expected) for row in spec.inputs] == [
        ({"country": "France"}, "Paris"),
        ({"country": "Japan"}, "Tokyo"),
    ]
    assert (spec.params, spec.sweep) == (
        {"max_tokens": 32, "temperature": 0},
        ({"temperature": 0}, {"temperature": 0.7}),
    )
    question = "What is the capital of {{ input.country }}? Answer with one word."
    think = (
        MessageTemplate("system", "You are a geographer."),
        MessageTemplate("user", "Say one sentence about {{ input.country }}."),
    )
    answer = (MessageTemplate("user", "{{ prev_output }} So the capital of {{ input.country }} is"),)
    assert spec.pipelines == (
        Pipeline("direct", (Stage((MessageTemplate("user", question),)),), (local, low)),
        Pipeline("reasoned", (Stage(think, "think"), Stage(answer, params={"max_tokens": 8}, timeout=0.5)), (local,)),
    )
    assert spec.scorers == (
        ScorerSpec("icontains", "icontains", "{{ expected }}", threshold=1),
        ScorerSpec("brief", "max-words", 5, weight=0.5),
        ScorerSpec("json-valid", "json-valid"),
    )
    assert spec.gates == (Gate({"icontains": 0.8}, 0),)
    assert spec.limits == Limits(64, 5_000_000_000, 1_000_000, 60.0)
    assert spec.cache == CachePolicy(CacheMode.READ_WRITE, 30 * 86400.0, "default")


def test_defaults_are_those_of_the_interface(desk: Any) -> None:
    spec = desk.read("prompt: Hi\nmodel: openai/gpt-5\n", name="hello.yaml").spec
    assert spec.name == "hello"
    assert spec.limits == Limits(64, None, None, 60.0)
    assert spec.cache == CachePolicy(CacheMode.READ_WRITE, None, "default")
    assert (spec.project, spec.tags, spec.params, spec.sweep, spec.repeats) == ("default", (), {}, ({},), 1)
    assert [(row.value, row.expected, row.tags) for row in spec.inputs] == [(None, None, ())]
    assert spec.pipelines[0].name == "default"


def test_promptlooper_yaml_without_a_name_is_called_like_its_folder(desk: Any) -> None:
    assert desk.read("prompt: Hi\nmodel: a/b\n", name="sub/promptlooper.yaml").spec.name == "sub"


@pytest.mark.parametrize(
    "text",
    ["model: local/x\nprompt: Hi\n", "model: a/b\npipelines: {p: [{prompt: a, model: local/x}, {prompt: b}]}\n"],
)
def test_local_models_are_asked_two_at_a_time(desk: Any, text: str) -> None:
    assert desk.spec(text).limits.max_concurrency == 2
    assert desk.spec(text + "limits: {max_concurrency: 7}\n").limits.max_concurrency == 7


def test_prompts_are_pipelines_of_one_stage_in_file_order(desk: Any) -> None:
    spec = desk.spec("model: a/b\nprompts: {zed: Hi, able: Ho}\n")
    assert [(p.name, p.stages[0].messages[0].content) for p in spec.pipelines] == [("zed", "Hi"), ("able", "Ho")]


def test_json_file_is_the_same_format(desk: Any) -> None:
    text = '{"prompt": "Hi {{ input }}",\n "model": "a/b",\n "inputs": [0, false, "", []]}'
    assert [row.value for row in desk.read(text, name="e.json").spec.inputs] == [0, False, "", []]
    found = desk.problems('{"prompt": "a", "model": "a/b",\n "modle": "a/b"}', name="e.json")
    assert found == ["e.json:2: 'modle' is not a key of an experiment; did you mean 'model'?"]


def test_texts_and_data_come_from_files_beside_the_experiment(desk: Any) -> None:
    desk.write("p/ask.txt", "Ask {{ input.q }}?\r\nNow.\r\n")
    desk.write("p/sys.txt", "Be brief.\n\n")
    desk.write("p/note.md", "note\r\n")
    desk.write("schema.json", '{"type": "object"}')
    desk.write("want.txt", "{{ expected }}\n")
    desk.write("rows.jsonl", '{"q": 1, "expected": "x"}\n\n{"q": 2}\n')
    spec = desk.spec(
        "model: a/b\ninputs: {file: rows.jsonl}\nfiles: {a: p/note.md, b: {file: p/note.md}}\n"
        "pipelines:\n  one:\n    - {system: {file: p/sys.txt}, prompt: {file: p/ask.txt}}\n"
        "  two:\n    - messages: [{role: user, content: {file: p/ask.txt}}, {role: assistant, content: ok}]\n"
        "scorers: [{json-schema: {file: schema.json}}, {exact: {file: want.txt}}]\n"
    )
    assert [m.content for m in spec.pipelines[0].stages[0].messages] == ["Be brief.\n", "Ask {{ input.q }}?\nNow."]
    assert [m.role for m in spec.pipelines[1].stages[0].messages] == ["user", "assistant"]
    assert spec.files == {"a": "note\r\n", "b": "note\r\n"}
    assert [scorer.value for scorer in spec.scorers] == [{"type": "object"}, "{{ expected }}"]
    assert [row.value for row in spec.inputs] == [{"q": 1}, {"q": 2}]


def test_file_in_a_row_is_data(desk: Any) -> None:
    assert desk.spec("model: a/b\nprompt: '{{ input.doc }}'\ninputs: [{doc: {file: x.txt}}]\n").inputs[0].value == {
        "doc": {"file": "x.txt"}
    }


def test_environment_is_not_looked_into(desk: Any) -> None:
    spec = desk.spec("model: a/b\nprompt: '$HOME ${HOME} $(HOME)'\n")
    assert spec.pipelines[0].stages[0].messages[0].content == "$HOME ${HOME} $(HOME)"


@pytest.mark.parametrize(
    ("scorer", "wanted"),
    [
        ("json-valid", ScorerSpec("json-valid", "json-valid")),
        ("not-json-valid", ScorerSpec("not-json-valid", "not-json-valid")),
        ("{contains: a}", ScorerSpec("contains", "contains", "a")),
        ("{not-contains: a, weight: 0}", ScorerSpec("not-contains", "not-contains", "a", weight=0)),
        ("{type: contains, value: a}", ScorerSpec("contains", "contains", "a")),
        ("{type: contains}", ScorerSpec("contains", "contains")),
        (
            "{name: n, numeric: 3, tolerance: 0.1, threshold: 0.5, output: '{{ stages[0].output }}'}",
            ScorerSpec("n", "numeric", 3, 1.0, 0.5, "{{ stages[0].output }}", {"tolerance": 0.1}),
        ),
        ("{type: exact, value: a, latency: 3}", ScorerSpec("exact", "exact", "a", settings={"latency": 3})),
        ("{json-path-equals: {path: $.a, equals: '{{ expected }}'}}",
         ScorerSpec("json-path-equals", "json-path-equals", {"path": "$.a", "equals": "{{ expected }}"})),
    ],
)  # fmt: skip
def test_scorer_has_three_forms_and_settings_of_its_type(desk: Any, scorer: str, wanted: ScorerSpec) -> None:
    others = "  - {regex: x, name: other}\n"
    assert (
        desk.spec(f"model: a/b\nprompt: Hi\ninputs: [{{expected: x}}]\nscorers:\n  - {scorer}\n{others}").scorers[0]
        == wanted
    )


def test_scorer_types_of_others_can_be_given(desk: Any) -> None:
    path = desk.write("e.yaml", "model: a/b\nprompt: Hi\nscorers: [{politeness: 3}, not-politeness]\n")
    spec = read_experiment(path, scorer_types=["politeness"]).spec
    assert [scorer.type for scorer in spec.scorers] == ["politeness", "not-politeness"]


@pytest.mark.parametrize(
    ("sweep", "points"),
    [
        ("{temperature: [0, 1], top_p: [0.5, 1]}", [(0, 0.5), (0, 1), (1, 0.5), (1, 1)]),
        ("[{temperature: 0, top_p: 1}, {temperature: 1, top_p: 0.5}]", [(0, 1), (1, 0.5)]),
    ],
)
def test_sweep_is_crossed_axes_or_a_list_of_points(desk: Any, sweep: str, points: list[tuple[float, float]]) -> None:
    spec = desk.spec(f"model: a/b\nprompt: Hi\nsweep: {sweep}\n")
    assert [(point["temperature"], point["top_p"]) for point in spec.sweep] == points


def test_one_stop_text_is_a_list_of_one(desk: Any) -> None:
    spec = desk.spec("model: a/b\nprompt: Hi\nparams: {stop: END}\nsweep: {stop: ['.', [a, b]]}\n")
    assert spec.params == {"stop": ["END"]}
    assert spec.sweep == ({"stop": ["."]}, {"stop": ["a", "b"]})


def test_one_gate_and_a_bare_cache_mode_are_short_forms(desk: Any) -> None:
    spec = desk.spec("model: a/b\nprompt: Hi\ngates: {max_failed_runs: 3}\ncache: off\n")
    assert spec.gates == (Gate({}, 3),)
    assert spec.cache.mode is CacheMode.OFF


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("60s", 60.0), ("500ms", 0.5), ("2m", 120.0), ("1h", 3600.0), ("30d", 2592000.0), ("1.5s", 1.5), ("45", 45.0)],
)
def test_durations_have_units_or_are_seconds(desk: Any, written: str, seconds: float) -> None:
    spec = desk.spec(f"model: a/b\nprompt: Hi\nlimits: {{stage_timeout: {written}}}\ncache: {{max_age: {written}}}\n")
    assert (spec.limits.stage_timeout, spec.cache.max_age) == (seconds, seconds)


def test_runs_and_experiments_have_no_time_limit_unless_one_is_given(desk: Any) -> None:
    free = desk.spec("model: a/b\nprompt: Hi\n").limits
    assert (free.run_timeout, free.experiment_timeout) == (None, None)
    bound = desk.spec("model: a/b\nprompt: Hi\nlimits: {run_timeout: 5m, experiment_timeout: 2h}\n").limits
    assert (bound.run_timeout, bound.experiment_timeout) == (300.0, 7200.0)


def test_money_is_exact(desk: Any) -> None:
    for dollars, nano in (("0.1", 100_000_000), ("0.000000001", 1), ("5", 5_000_000_000), ("1.23", 1_230_000_000)):
        spec = desk.spec(f"model: a/b\nprompt: Hi\nlimits: {{budget_usd: {dollars}}}\n")
        assert spec.limits.budget_nanousd == nano


def test_pipeline_takes_entries_of_the_experiment_by_name(desk: Any) -> None:
    spec = desk.spec(
        "models: [{name: low, model: a/b, params: {x: 1}}, a/c]\n"
        "pipelines:\n  p: {models: [low, z/new], stages: [{prompt: Hi}]}\n  q: {model: a/c, stages: [{prompt: Hi}]}\n"
    )
    assert spec.pipelines[0].models == (ModelEntry("low", "a/b", {"x": 1}), ModelEntry("z/new", "z/new"))
    assert spec.pipelines[1].models == (ModelEntry("a/c", "a/c"),)


def test_models_are_not_needed_where_every_stage_names_its_own(desk: Any) -> None:
    spec = desk.spec("pipelines: {p: [{prompt: a, model: x/one}, {prompt: b, model: x/two}]}\n")
    assert spec.pipelines[0].models == (ModelEntry("x/two", "x/two"),)


def test_where_each_field_was_written_is_known(desk: Any) -> None:
    desk.write("docs/handbook.md", "x")
    read = desk.read(FULL.replace("      - {prompt:", "      - {model: a/b,\n         prompt:"))
    for field, line in {
        "pipelines[0]": 19,
        "pipelines[0].models[1]": 14,
        "pipelines[0].models[1].model": 14,
        "pipelines[1].models[0].model": 22,
        "pipelines[1].stages[1].model": 25,
        "pipelines[1].stages[1].messages[0].content": 26,
        "pipelines[1].stages[1].params.max_tokens": 26,
        "scorers[0]": 28,
        "scorers[0].value": 28,
        "scorers[2]": 30,
        "inputs[1]": 11,
        "inputs[1].value.country": 11,
        "sweep[1].temperature": 16,
        "gates[0].min_scores.icontains": 31,
        "limits.budget_usd": 32,
        "cache.namespace": 33,
        "project": 4,
        "": 1,
        "unheard.of[3]": 1,
    }.items():
        assert str(read.origin(field)).rpartition("/")[2] == f"e.yaml:{line}", field
    found = read.located(Problem("pipelines[0].models[1].model", "no provider 'openai'"))
    assert str(found).endswith("e.yaml:14: no provider 'openai'")


def test_where_texts_and_rows_of_other_files_stand_is_known(desk: Any) -> None:
    desk.write("ask.txt", "Hi {{ input.q }}")
    desk.write("rows.csv", 'q\n"two\nlines"\nthree\n')
    read = desk.read("model: a/b\nprompt: {file: ask.txt}\ninputs: {file: rows.csv}\n")
    assert str(read.origin("pipelines[0].stages[0].messages[0].content")) == str(desk.folder / "ask.txt:1")
    assert [str(read.origin(f"inputs[{i}]")) for i in (0, 1)] == [str(desk.folder / f"rows.csv:{n}") for n in (2, 4)]


def test_experiment_file_itself_may_be_a_symlink(desk: Any, tmp_path: Path) -> None:
    real = desk.write("elsewhere/real.yaml", "model: a/b\nprompt: Hi\n")
    (tmp_path / "here").mkdir()
    link = tmp_path / "here" / "e.yaml"
    link.symlink_to(real)
    assert read_experiment(link).spec.name == "e"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"GIF89a", "gif"),
        (b"RIFF\n\0\0\0WEBP", "webp"),
    ],
)
def test_an_image_is_of_the_type_that_its_content_is(desk: Any, content: bytes, kind: str) -> None:
    desk.write("photo.png", content)
    spec = desk.spec("model: free/a\npipelines: {p: [{prompt: Look, images: {file: photo.png}}]}\n")
    (image,) = spec.pipelines[0].stages[0].images
    assert image.startswith(f"data:image/{kind};base64,")
