"""What is wrong with a file is said with its line, in one sentence with the nearest valid name, all at once."""

# ruff: noqa: E501 (a table is read best with one case a line)

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from promptlooper.runner.spec.problems import InvalidFile
from promptlooper.runner.spec.reading import read_experiment

GOOD = "model: a/b\nprompt: Hi\n"
LATER = "is not available yet"


def stage(text: str) -> str:
    """A file whose stage stands on line 4."""
    return f"model: a/b\npipelines:\n  p:\n    - {text}\n"


def template(text: str) -> str:
    """A file with inputs, whose second stage's prompt stands on line 6."""
    return (
        "model: a/b\nconfig: {tone: {deep: [formal]}}\ninputs: [{country: France, items: 3, expected: Paris}]\n"
        f"pipelines: {{p: [{{name: think, prompt: Hi}},\n  {{name: say,\n   prompt: '{text}'}}, {{name: last, prompt: Ho}}]}}\n"
    )


CASES: dict[str, tuple[str, int, str]] = {
    # keys
    "unknown key": (GOOD + "projct: x\n", 3, "'projct' is not a key of an experiment; did you mean 'project'?"),
    "unknown key of a stage": (stage("{promt: Hi, prompt: Ho}"), 4, "'promt' is not a key of a stage; did you mean 'prompt'?"),
    "unknown key of limits": (GOOD + "limits:\n  budget: 3\n", 4, "'budget' is not a key of 'limits'; did you mean 'budget_usd'?"),
    "unknown key of cache": (GOOD + "cache:\n  maxage: 3\n", 4, "did you mean 'max_age'?"),
    "unknown key of a gate": (GOOD + "gates:\n  - min_score: {x: 1}\n", 4, "did you mean 'min_scores'?"),
    "unknown key of a model": ("prompt: Hi\nmodels:\n  - {model: a/b, parms: {}}\n", 3, "did you mean 'params'?"),
    "unknown key of a pipeline": ("model: a/b\npipelines:\n  p:\n    stage: []\n    stages: [{prompt: a}]\n", 4, "did you mean 'stages'?"),
    "unknown key of inputs": (GOOD + "inputs:\n  file: rows.csv\n  simple: 3\n", 5, "did you mean 'sample'?"),
    "unknown key of a message": (stage("messages: [{role: user, content: a,\n         text: b}]"), 5, "'text' is not a key of a message"),
    "duplicate key": (GOOD + "model: c/d\n", 3, "the key 'model' is there twice"),
    "duplicate pipeline name": ("model: a/b\nprompts:\n  p: Hi\n  p: Ho\n", 4, "the key 'p' is there twice"),
    "bad yaml": ("model: a/b\nprompt: [Hi\n", 3, "this is not YAML"),
    "template without quotes": ("model: a/b\nprompt: {{ input }}\n", 2, "put a template in quotes"),
    "not a mapping": ("- a\n", 1, "an experiment must be a mapping"),
    "nothing": ("", 1, "an experiment must be a mapping with a prompt, not nothing"),
    "other version": (GOOD + "version: 2\n", 3, "reads version 1, not the number 2"),
    # pipelines and stages
    "no prompt": ("model: a/b\n", 1, "exactly one of prompt, prompts, pipelines is needed; there is none"),
    "two prompts": (GOOD + "prompts: {a: b}\n", 3, "there are 'prompt' and 'prompts'"),
    "empty pipelines": ("model: a/b\npipelines: {}\n", 2, "'pipelines' must not be empty"),
    "pipelines as a list": ("model: a/b\npipelines: [{prompt: a}]\n", 2, "must be a mapping, not a list"),
    "empty pipeline": ("model: a/b\npipelines:\n  p: []\n", 3, "must be a list of stages, not an empty one"),
    "pipeline of text": ("model: a/b\npipelines:\n  p: Hi\n", 3, "must be a list of stages, not the text 'Hi'"),
    "stage of text": (stage("Hi"), 4, "a stage must be a mapping with 'prompt', not the text 'Hi'"),
    "stage without a prompt": (stage("{name: a}"), 4, "exactly one of 'prompt' and 'messages'"),
    "stage with prompt and messages": (stage("{prompt: a, messages: []}"), 4, "exactly one of 'prompt' and 'messages'"),
    "system beside messages": (stage("{system: a, messages: [{role: user, content: b}]}"), 4, "'system' goes with 'prompt'"),
    "no messages": (stage("messages: []"), 4, "'messages' must not be empty"),
    "unknown role": (stage("messages: [{role: usr, content: a}]"), 4, "'usr' is not a role; did you mean 'user'?"),
    "message without a role": (stage("messages: [{content: a}]"), 4, "a message needs 'role' and 'content'"),
    "prompt of a number": (stage("prompt: 3"), 4, "prompt must be text, not the number 3; put it in quotes"),
    "empty prompt": (stage("prompt: ' '"), 4, "the prompt is empty"),
    "stage name": (stage("{name: Think, prompt: a}"), 4, "the stage name 'Think' must begin with a-z or _"),
    "two stages of one name": (stage("{name: a, prompt: a}\n    - {name: a, prompt: b}"), 5, "two stages are named 'a'"),
    "timeout": (stage("{prompt: a, timeout: soon}"), 4, "timeout: the text 'soon' is not a duration; write it like 500ms"),
    # models
    "no model": ("prompt: Hi\n", 1, "the pipeline 'default' has no model"),
    "empty models": ("prompt: Hi\nmodels: []\n", 2, "'models' must not be empty"),
    "model and models": ("prompt: Hi\nmodels: [a/b]\nmodel: a/b\n", 3, "only one of 'models' and 'model'"),
    "model without provider": ("prompt: Hi\nmodels:\n  - gpt-5\n", 3, "the model 'gpt-5' is not PROVIDER/MODEL"),
    "model of a number": ("prompt: Hi\nmodel: 5\n", 2, "a model must be PROVIDER/MODEL"),
    "model without a name": ("prompt: Hi\nmodel: openai/\n", 2, "the model 'openai/' is not PROVIDER/MODEL"),
    "entry without a model": ("prompt: Hi\nmodels:\n  - {name: a}\n", 3, "a model needs 'model'"),
    "two models of one name": ("prompt: Hi\nmodels:\n  - a/b\n  - a/b\n", 4, "two models are named 'a/b'"),
    "stage pins a name": (stage("{prompt: a, model: low}"), 4, "the model 'low' is not PROVIDER/MODEL"),
    "pipeline takes an unknown name": (
        "models: [{name: low, model: a/b}]\npipelines:\n  p:\n    models: [lo]\n    stages: [{prompt: a}]\n", 4, "did you mean 'low'?"
    ),
    # parameters
    "temperature of text": (GOOD + "params:\n  temperature: hot\n", 4, "'temperature' must be a number, not the text 'hot'"),
    "temperature of a boolean": (GOOD + "params:\n  temperature: true\n", 4, "'temperature' must be a number"),
    "max_tokens of a float": (GOOD + "params: {max_tokens: 1.5}\n", 3, "'max_tokens' must be an integer"),
    "max_tokens of 0": (GOOD + "params: {max_tokens: 0}\n", 3, "'max_tokens' must be at least 1"),
    "top_p": (GOOD + "params: {top_p: 2}\n", 3, "'top_p' must be from 0 to 1"),
    "budget of reasoning": (GOOD + "params: {reasoning_tokens: many}\n", 3, "'reasoning_tokens' must be an integer"),
    "effort of reasoning": (GOOD + "params: {reasoning_effort: 3}\n", 3, "'reasoning_effort' must be text such as low"),
    "one of the best": (GOOD + "params: {top_k: 1.5}\n", 3, "'top_k' must be an integer, not the number 1.5"),
    "fewer than none": (GOOD + "params: {top_logprobs: -1}\n", 3, "'top_logprobs' must be at least 0, not -1"),
    "logprobs": (GOOD + "params: {logprobs: yes}\n", 3, "'logprobs' must be true or false, not the text 'yes'"),
    "one or zero": (GOOD + "params: {parallel_tool_calls: 1}\n", 3, "'parallel_tool_calls' must be true or false"),
    "stop": (GOOD + "params: {stop: 3}\n", 3, "'stop' must be text or a list of texts"),
    "params as a list": (GOOD + "params: [a]\n", 3, "params must be a mapping, not a list"),
    "model in params": (GOOD + "params: {model: x}\n", 3, "'model' is not a parameter; write 'model' beside 'params'"),
    "tools in params": (GOOD + "params:\n  seed: 1\n  tools: [{type: function}]\n", 5, "'tools' is not a parameter; write 'tools' beside"),
    "response format of a model": ("prompt: Hi\nmodels:\n  - {model: a/b,\n     params: {response_format: {type: json_object}}}\n", 4, "write 'response_schema' beside"),
    "swept tool choice": (GOOD + "sweep: {tool_choice: [auto, none]}\n", 3, "write 'tool_choice' beside"),
    "function call of a stage": (stage("{prompt: a, params: {function_call: auto}}"), 4, "write 'tool_choice' beside"),
    "several answers": (GOOD + "params: {n: 2}\n", 3, "'n' must be 1, not the number 2: a run has one answer; 'repeats' asks again"),
    "best of several": (GOOD + "params: {best_of: 3}\n", 3, "'best_of' must be 1, not the number 3"),
    "stream options": (GOOD + "params: {stream_options: {}}\n", 3, "'stream_options' is not a parameter"),
    "stage params": (stage("{prompt: a, params: {seed: x}}"), 4, "'seed' must be an integer"),
    "model params": ("prompt: Hi\nmodels:\n  - {model: a/b,\n     params: {temperature: x}}\n", 4, "'temperature' must be a number"),
    # sweep
    "empty axis": (GOOD + "sweep:\n  temperature: []\n", 4, "the axis 'temperature' is empty"),
    "axis of one value": (GOOD + "sweep:\n  temperature: 1\n", 4, "the axis 'temperature' must be a list of values, not the number 1"),
    "empty sweep": (GOOD + "sweep: []\n", 3, "'sweep' must not be empty"),
    "sweep without axes": (GOOD + "sweep: {}\n", 3, "'sweep' must not be empty"),
    "sweep of text": (GOOD + "sweep: all\n", 3, "'sweep' must be axes or a list of points"),
    "swept type": (GOOD + "sweep:\n  temperature: [0, hot]\n", 4, "'temperature' must be a number, not the text 'hot'"),
    "equal points": (GOOD + "sweep:\n  - {temperature: 1}\n  - {temperature: 1.0}\n", 5, "two points of the sweep are equal"),
    "dead axis of the sweep": (
        "model: a/b\nsweep:\n  top_p: [1]\n  temperature: [0, 1]\npipelines:\n  p: [{prompt: a, params: {temperature: 0}}]\n",
        4, "the sweep of 'temperature' changes nothing in pipeline 'p'"
    ),
    "dead axis of models": (
        "models: [a/b, a/c]\npipelines:\n  q: [{prompt: a}]\n  p: [{prompt: a, model: a/b}, {prompt: b, model: a/c}]\n",
        4, "the models change nothing in pipeline 'p'"
    ),
    "too many points": (GOOD + f"sweep:\n  a: {list(range(101))}\n  b: {list(range(100))}\n", 5, "more than 10,000 points"),
    # scorers
    "unknown scorer": (GOOD + "scorers:\n  - icontain\n", 4, "'icontain' is not a type of scorer; did you mean 'icontains'?"),
    "unknown scorer with value": (GOOD + "scorers:\n  - {weight: 1,\n     icontain: x}\n", 5, "did you mean 'icontains'?"),
    "unknown negated scorer": (GOOD + "scorers:\n  - not-contain\n", 4, "did you mean 'not-contains'?"),
    "unknown type": (GOOD + "scorers:\n  - value: 3\n    type: zzz\n", 5, "'zzz' is not a type of scorer; there are contains, cost"),
    "two types": (GOOD + "scorers:\n  - {exact: a, contains: b}\n", 4, "a scorer has one type; this one has 'exact' and 'contains'"),
    "no type": (GOOD + "scorers:\n  - {value: a}\n", 4, "a scorer needs a type"),
    "value twice": (GOOD + "scorers:\n  - {exact: a,\n     value: b}\n", 5, "'exact' holds the value already"),
    "two scorers of one name": (GOOD + "scorers:\n  - exact: a\n  - exact: b\n", 5, "two scorers are named 'exact'"),
    "scorer name": (GOOD + "scorers:\n  - exact: a\n    name: 'a b'\n", 5, "the scorer name 'a b' must be"),
    "weight": (GOOD + "scorers:\n  - {exact: a, weight: -1}\n", 4, "'weight' must be at least 0"),
    "weight of text": (GOOD + "scorers:\n  - {exact: a, weight: big}\n", 4, "weight must be a number, not the text 'big'"),
    "threshold": (GOOD + "scorers:\n  - {exact: a, threshold: 2}\n", 4, "'threshold' must be from 0 to 1"),
    "no weight at all": (GOOD + "scorers:\n  - {exact: a, weight: 0}\n", 3, "every scorer has weight 0"),
    "scorers as a mapping": (GOOD + "scorers: {exact: a}\n", 3, "scorers must be a list, not a mapping"),
    "scorer of a number": (GOOD + "scorers:\n  - 3\n", 4, "a scorer must be a type or a mapping"),
    "gate of an unknown scorer": (
        GOOD + "scorers: [exact]\ngates:\n  - min_scores:\n      exct: 1\n", 6, "no scorer is named 'exct'; did you mean 'exact'?"
    ),
    "gate above 1": (GOOD + "scorers: [exact]\ngates:\n  min_scores: {exact: 80}\n", 5, "must be from 0 to 1, not 80"),
    "gate of failed runs": (GOOD + "gates: {max_failed_runs: -1}\n", 3, "'max_failed_runs' must be at least 0"),
    "empty gate": (GOOD + "gates:\n  - {}\n", 4, "a gate must not be empty"),
    # the rest
    "project": (GOOD + "project: My Project\n", 3, "the project 'My Project' must be 1 to 40 of a-z, 0-9 and -"),
    "namespace": (GOOD + "cache:\n  namespace: A\n", 4, "the namespace 'A' must be"),
    "name": (GOOD + "name: 3\n", 3, "'name' must be text, not the number 3; put it in quotes"),
    "empty name": (GOOD + "name: ''\n", 3, "not a name of 1 to 200 characters"),
    "tags": (GOOD + "tags: demo\n", 3, "'tags' must be a list, not the text 'demo'"),
    "tag": (GOOD + "tags:\n  - ok\n  - 'a,b'\n", 5, "the tag 'a,b' must be"),
    "metadata": (GOOD + "metadata: {a: [1]}\n", 3, "metadata 'a' must be text, not a list"),
    "metadata of a number": (GOOD + "metadata: {a: 3}\n", 3, "metadata 'a' must be text, not the number 3; put it in quotes"),
    "config": (GOOD + "config: [1]\n", 3, "'config' must be a mapping, not a list"),
    "repeats": (GOOD + "repeats: 0\n", 3, "'repeats' must be from 1 to"),
    "repeats of text": (GOOD + "repeats: many\n", 3, "repeats must be an integer, not the text 'many'"),
    "concurrency": (GOOD + "limits: {max_concurrency: 0}\n", 3, "'max_concurrency' must be from 1 to 10,000, not 0"),
    "budget_usd": (GOOD + "limits: {budget_usd: 0}\n", 3, "not an amount of dollars above 0"),
    "budget that is no number": (GOOD + "limits: {budget_usd: .nan}\n", 3, ".nan is not a number that JSON has"),
    "budget_tokens": (GOOD + "limits: {budget_tokens: 0}\n", 3, "'budget_tokens' must be at least 1"),
    "stage_timeout": (GOOD + "limits: {stage_timeout: 5x}\n", 3, "is not a duration"),
    "run_timeout": (GOOD + "limits:\n  run_timeout: soon\n", 4, "run_timeout: the text 'soon' is not a duration"),
    "experiment_timeout": (GOOD + "limits:\n  experiment_timeout: 366d\n", 4, "'experiment_timeout' must be above 0 and at most 365 days"),
    "cache mode": (GOOD + "cache:\n  mode: readwrite\n", 4, "did you mean 'read_write'?"),
    "bare cache mode": (GOOD + "cache: of\n", 3, "did you mean 'off'?"),
    "too many runs": (GOOD + "repeats: 100000\nsweep: {seed: [1,2,3]}\ninputs: " + str(list(range(99))) + "\n", 1, "29,700,000 runs"),
    # inputs
    "empty inputs": (GOOD + "inputs: []\n", 3, "'inputs' must not be empty"),
    "null inputs": (GOOD + "inputs:\n", 3, "'inputs' must be a list of rows or {file: path}, not nothing"),
    "missing input file": (GOOD + "inputs:\n  file: nope.csv\n", 4, "there is no file 'nope.csv' beside 'e.yaml'"),
    "unknown row key": (GOOD + "inputs:\n  - {a: 1}\n  - {_idd: 1}\n", 5, "'_idd' is not a key of rows that begins with _; did you mean '_id'?"),
    "equal ids": (GOOD + "inputs:\n  - {_id: a}\n  - {_id: b}\n  - {_id: a}\n", 6, "two rows have the '_id' 'a'"),
    "row tags": (GOOD + "inputs:\n  - {_tags: [1]}\n", 4, "'_tags' must be a list of texts"),
    "row metadata": (GOOD + "inputs:\n  - {_metadata: x}\n", 4, "'_metadata' must be a mapping of texts"),
    "row metadata of a number": (GOOD + "inputs:\n  - {_metadata: {n: 3}}\n", 4, "'_metadata': 'n' must be text, not the number 3; put it in quotes"),
    "row id": (GOOD + "inputs:\n  - {_id: ''}\n", 4, "'_id' must be text of 1 to 200 characters"),
    # files
    "missing prompt file": ("model: a/b\nprompt: {file: no.txt}\n", 2, "there is no file 'no.txt' beside 'e.yaml'"),
    "absolute path": ("model: a/b\nprompt: {file: /etc/passwd}\n", 2, "the path '/etc/passwd' must be relative"),
    "path out of the folder": ("model: a/b\nprompt: {file: ../../etc/passwd}\n", 2, "is outside the folder of 'e.yaml'"),
    "path to a folder": ("model: a/b\nprompt: {file: .}\n", 2, "'.' is not a file"),
    "missing file of files": (GOOD + "files:\n  a: no.md\n", 4, "file 'a': there is no file 'no.md'"),
    "missing schema": (GOOD + "scorers:\n  - json-schema: {file: no.json}\n", 4, "there is no file 'no.json'"),
    # templates
    "unknown root": (template("{{ inptu.country }}"), 6, "'inptu' is not a name that templates know; did you mean 'input'?"),
    "a key no row has": (template("{{ input.contry }}"), 6, "'input.contry': no input row has 'contry'; did you mean 'country'?"),
    "a key no row has, by subscript": (template("{{ input[\"contry\"] }}"), 6, "no input row has 'contry'"),
    "expected as a key": (template("{{ input.expected }}"), 6, "write {{ expected }}"),
    "a method of a mapping": (template("{{ input.keys() }}"), 6, "a.b is a key, never a method"),
    "stage not yet run, by index": (template("{{ stages[1].output }}"), 6, "'stages[1]': the stage 1 has not run yet"),
    "stage not yet run, by name": (template("{{ stages.last.output }}"), 6, "'stages.last': the stage 'last' has not run yet"),
    "the stage itself": (template("{{ stages.say.output }}"), 6, "'stages.say': the stage 'say' has not run yet"),
    "unknown stage": (template("{{ stages.thnk.output }}"), 6, "no earlier stage is named 'thnk'; did you mean 'think'?"),
    "unknown part of a stage": (template("{{ stages.think.ouput }}"), 6, "a stage has no 'ouput'; did you mean 'output'?"),
    "unknown config": (template("{{ config.tonne }}"), 6, "'config.tonne': there is no 'tonne' in the experiment's config; did you mean 'tone'?"),
    "unknown deep config": (template("{{ config.tone.deep[3] }}"), 6, "'config.tone.deep[3]'"),
    "unknown file": (template("{{ files.book }}"), 6, "'files' of the experiment has no 'book'"),
    "output in a stage": (template("{{ output }}"), 6, "'output' is known to scorers only"),
    "loop outside": (template("{{ loop.index }}"), 6, "'loop' is known inside a for loop only"),
    "self": (template("{{ self }}"), 6, "'self' is not a name that templates know"),
    "syntax": (template("{{ input.country"), 6, "the template is wrong: unexpected end of template"),
    "unknown filter": (template("{{ input.country | uper }}"), 6, "the template is wrong: No filter named 'uper'"),
    "include": (template("{% include \"x\" %}"), 6, "{% include %} is not available in templates"),
    "syntax in a block": ("model: a/b\nprompt: |\n  one\n  {{ two three }}\n", 2, "line 2 of the template: the template is wrong"),
    "expected without inputs": ("model: a/b\nprompt: '{{ expected }}'\n", 2, "'expected': there are no inputs, so it is null; add 'inputs'"),
    "expected that no row has": (GOOD + "inputs: [{a: 1}, {a: 2, expectd: x}]\nscorers:\n  - exact: '{{ expected }}'\n", 5, "'expected': no input row has 'expected'; did you mean 'expectd'?"),
    "part of an expected that no row has": (GOOD + "inputs: [{a: 1}]\nscorers:\n  - exact: '{{ expected.name }}'\n", 5, "no input row has 'expected'"),
    "input without inputs": ("model: a/b\nprompt: '{{ input.x }}'\n", 2, "there are no inputs, so 'input' is null"),
    "scorer template": (GOOD + "scorers:\n  - exact: '{{ expectd }}'\n", 4, "did you mean 'expected'?"),
    "scorer template deep inside": (GOOD + "scorers:\n  - json-path-equals: {path: a,\n     equals: ['{{ outptu }}']}\n", 4, "did you mean 'output'?"),
    "scorer output": (GOOD + "scorers:\n  - exact: a\n    output: '{{ stages[3].output }}'\n", 5, "no pipeline has such a stage"),
    # later
    **{
        f"later: {key}": (GOOD + f"{key}: x\n", 3, f"'{key}' {LATER}") for key in ("judge", "metrics", "baseline")
    },
    **{
        f"later: {key} of gates": (GOOD + f"gates:\n  - {key}: 3\n", 4, f"'{key}' {LATER}")
        for key in ("min_pass_rate", "max_cost_usd", "max_p95_latency_ms", "max_drop")
    },
    # calls
    **{
        f"{key} of a stage: {value}": (stage(f"{{prompt: a,\n       {key}: {value}}}"), 5, said)
        for key, value, said in (
            ("response_schema", "x", "response_schema must be a mapping, not the text 'x'"),
            ("response_schema", "{type: objekt}", "the schema is not a valid JSON Schema at /type"),
            ("response_schema", "{$ref: 'https://a/b'}", "nothing is fetched"),
            ("response_schema", "{file: none.json}", "there is no file 'none.json'"),
            ("retries_on_invalid", "x", "'retries_on_invalid' must be an integer"),
            ("retries_on_invalid", "99", "'retries_on_invalid' must be from 0 to 10"),
            ("retries_on_invalid", "1", "without them no answer is invalid"),
            ("tools", "x", "tools must be a list"),
            ("tools", "[{name: x, nam: x}]", "did you mean 'name'?"),
            ("tools", "[{description: x}]", "a tool needs 'name'"),
            ("tools", "['x']", "a tool must be a mapping"),
            ("tools", "[{name: 'a b'}]", "the tool name 'a b' must be 1 to 64 of"),
            ("tools", "[{name: a}, {name: a}]", "two tools are named 'a'"),
            ("tools", "[{name: a, parameters: {type: 3}}]", "the schema is not a valid JSON Schema"),
            ("tool_choice", "auto", "'tool_choice' needs 'tools'"),
            ("tool_choice", "[a]", "tool_choice must be text"),
            ("tool_results", "{b: x}", "no tool is named 'b'"),
            ("tool_results", "x", "tool_results must be a mapping"),
            ("images", "x", "an image must be an https:// address"),
            ("images", "http://a.example/b.png", "an image must be an https:// address"),
            ("images", "[{file: text.png}]", "the file 'text.png' is no image: its content is none of png, jpeg, gif, webp"),
            ("images", "[{file: none.png}]", "there is no file 'none.png'"),
            ("images", "[{file: rows.csv}]", "an image file must end in .png"),
            ("images", "'{{ imput.x }}'", "did you mean 'input'?"),
            ("continue", "x", "'continue' must be true or false"),
            ("continue", "true", "there is no conversation to continue before the first stage"),
            ("for_each", "x", "'for_each' must be a template that gives a list"),
            ("for_each", "'{{ item }}'", "'item' is known in stages with 'for_each' only"),
        )
    },
    "tool choice": (stage("{prompt: a, tools: [{name: get_weather}],\n       tool_choice: get_wether}"), 5, "did you mean 'get_weather'?"),
    "system of a continued conversation": (stage("{prompt: a}\n    - {prompt: b, system: c,\n       continue: true}"), 6, "has its system prompt already"),
    **{
        f"later: {key} of scorers": (GOOD + f"scorers:\n  - exact: a\n    {key}: x\n", 5, f"'{key}' {LATER}")
        for key in ("when", "stage", "model", "params")
    },
    **{
        f"later: {key} of rows": (GOOD + f"inputs:\n  - {{a: 1, {key}: x}}\n", 4, f"'{key}' {LATER}") for key in ("_scorers", "_weight")
    },
    "item": (template("{{ item }}"), 6, "'item' is known in stages with 'for_each' only"),
    "item_index": (template("{{ item_index }}"), 6, "'item_index' is known in stages with 'for_each' only"),
    "arguments": (template("{{ arguments.city }}"), 6, "'arguments' is known in 'tool_results' only"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_file_is_refused_with_line_and_sentence(desk: Any, name: str) -> None:
    text, line, said = CASES[name]
    desk.write("rows.csv", "a\n1\n")
    desk.write("text.png", "no image")
    problems = desk.problems(text)
    assert any(problem.startswith(f"e.yaml:{line}: ") and said in problem for problem in problems), problems
    assert len(problems) == 1, problems


def test_everything_wrong_is_said_at_once_in_the_order_of_the_file(desk: Any) -> None:
    desk.write("rows.csv", "country,_x\nFrance,1\n")
    problems = desk.problems(
        "name: x\n"
        "projct: y\n"
        "inputs: {file: rows.csv}\n"
        "models: [openai/gpt-5, openai/gpt-6]\n"
        "judge: {model: a/b}\n"
        "sweep: {temperature: []}\n"
        "pipelines:\n"
        "  a:\n"
        "    - {model: openai/gpt-5, prompt: '{{ inptu.country }} {{ input.whatever }}'}\n"
        "  a:\n"
        "    - prompt: again\n"
        "  b:\n"
        "    - {prompt: '{{ x', tools: x}\n"
        "    - {prompt: {file: gone.txt}}\n"
        "scorers:\n"
        "  - icontain: x\n"
        "  - {exact: '{{ expected }}', when: x}\n"
        "gates: {min_scores: {regx: 0.5}, max_drop: 1}\n"
    )
    assert [problem.split(": ")[0] for problem in problems] == [
        *(f"e.yaml:{line}" for line in (2, 5, 6, 8, 9, 10, 13, 13, 14, 16, 17, 18, 18)),
        "rows.csv:1",
    ]


def test_problems_of_other_files_name_them(desk: Any) -> None:
    desk.write("ask.txt", "Hi\n{{ input.contry }}\n{{ oops\n")
    desk.write("bad.txt", b"caf\xe9")
    desk.write("schema.json", '{"type": "object",\n "type": "array"}')
    problems = desk.problems(
        "model: a/b\ninputs: [{country: x}]\nprompts: {a: {file: ask.txt}, b: {file: bad.txt}}\n"
        "scorers: [{json-schema: {file: schema.json}}]\n"
    )
    assert problems[0].startswith("ask.txt:1: line 3 of the template: the template is wrong")
    assert problems[1].startswith("bad.txt:1: this is not UTF-8")
    assert problems[2] == "schema.json:2: the key 'type' is there twice; remove one"
    assert len(problems) == 3


def test_files_outside_are_refused_through_symlinks_too(desk: Any, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    desk.folder = tmp_path / "inner"
    desk.write("inside.txt", "fine")
    (desk.folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (desk.folder / "near.txt").symlink_to(desk.folder / "inside.txt")
    (desk.folder / "up").symlink_to(tmp_path)
    os.mkfifo(desk.folder / "pipe")
    problems = desk.problems(
        "model: a/b\nprompts:\n  a: {file: link.txt}\n  b: {file: near.txt}\n  c: {file: up/secret.txt}\n  d: {file: pipe}\n"
    )
    assert [problem.split(" the f")[0] for problem in problems[:2]] == ["e.yaml:3: a prompt:", "e.yaml:5: a prompt:"]
    assert all("is outside the folder" in problem for problem in problems[:2])
    assert problems[2] == "e.yaml:6: a prompt: 'pipe' is not a file"
    assert "secret" not in problems[0]


def test_missing_experiment_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile) as caught:
        read_experiment(tmp_path / "promptlooper.yaml")
    assert str(caught.value).endswith("promptlooper.yaml: there is no such file; `promptlooper init` writes one")


def test_what_could_be_read_is_kept_to_ask_the_services_too(desk: Any) -> None:
    path = desk.write(
        "e.yaml",
        "models: [openai/gpt-5, nope/x]\ninputs: {file: gone.csv}\nprompts: {a: '{{ input.q }}', b: {file: gone}}\n"
        "scorers: [{regex: '('}, {exact: '{{ oops'}, icontain]\nlimits: {budget_usd: 1}\n",
    )
    with pytest.raises(InvalidFile) as caught:
        read_experiment(path)
    partial = caught.value.partial
    assert partial is not None
    assert [entry.model for entry in partial.spec.pipelines[0].models] == ["openai/gpt-5", "nope/x"]
    assert [scorer.value for scorer in partial.spec.scorers] == ["(", "{{ output }}"]
    assert partial.origin("pipelines[0].models[1].model").line == 1
    assert partial.origin("scorers[0]").line == 4


def test_a_scorer_that_could_not_be_read_hides_no_gate_on_another_name(desk: Any) -> None:
    gates = "gates: {min_scores: {zzz: 0.5, icontains: 0.5, mine: 0.5}}\n"
    scorers = "scorers: [icontain, {name: mine, type: foo}]\n"
    problems = desk.problems(GOOD + scorers + gates)
    assert [problem.split("; ")[0] for problem in problems] == [
        "e.yaml:3: 'icontain' is not a type of scorer",
        "e.yaml:3: 'foo' is not a type of scorer",
        "e.yaml:4: no scorer is named 'zzz'",
    ]


@pytest.mark.parametrize("scorer", ["3", "foo", "{value: 3}"])
def test_nothing_is_said_of_gates_where_a_scorer_has_no_name_that_can_be_read(desk: Any, scorer: str) -> None:
    assert len(desk.problems(GOOD + f"scorers: [{scorer}]\ngates: {{min_scores: {{zzz: 0.5}}}}\n")) == 1


def test_scorer_whose_file_is_missing_is_kept_with_a_value_that_nothing_can_be_said_of(desk: Any) -> None:
    path = desk.write("e.yaml", GOOD + "scorers: [{json-schema: {file: no.json}}, {exact: {file: no.txt}}]\n")
    with pytest.raises(InvalidFile) as caught:
        read_experiment(path)
    assert caught.value.partial is not None
    assert [scorer.value for scorer in caught.value.partial.spec.scorers] == ["{{ output }}", "{{ output }}"]


def test_file_that_is_not_utf_8_is_told_with_its_line(desk: Any) -> None:
    (problem,) = desk.problems(b"name: x\nprompt: caf\xe9\n")
    assert problem == "e.yaml:2: this is not UTF-8 (byte 0xe9); save the file as UTF-8"


@pytest.mark.parametrize(
    "guard",
    [
        "{{ expected | default('none') }}",
        "{% if expected is defined %}{{ expected }}{% endif %}",
        "{% if expected %}{{ expected }}{% endif %}",
        "{{ expected if expected is not none }}",
        "{{ expected or 'none' }}",
    ],
)
def test_template_that_says_what_to_do_without_expected_may_name_it(desk: Any, guard: str) -> None:
    desk.read(f'model: a/b\ninputs: [{{q: 1}}]\nprompt: "{guard}"\n')


@pytest.mark.parametrize(
    "guard", ["{{ input.hint | default('') }}", "{% if input.hint is defined %}{{ input.hint }}{% endif %}"]
)
def test_template_that_says_what_to_do_without_a_key_may_name_one_that_no_row_has(desk: Any, guard: str) -> None:
    assert desk.spec(f'model: a/b\ninputs: [{{a: 1}}]\nprompt: "{guard}x"\n')


def test_key_that_only_some_rows_lack_is_no_mistake_of_the_file(desk: Any) -> None:
    assert desk.spec("model: a/b\ninputs: [{a: 1}, {b: 2}]\nprompt: '{{ input.a }}'\n")


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ input[0] }}{{ input[-1] }}",
        "{{ input.upper() }}",
        "{% for x in input %}{{ x.deep }}{{ loop.index }}{% endfor %}",
        "{% set y = input %}{{ y.any }}",
        "{{ config.tone.upper() }}{{ config.list[0] }}{{ config.list | length }}",
        "{{ stages | length }}{{ prev_output }}{{ stage_index }}{{ tags }}{{ expected }}",
    ],
)
def test_templates_that_may_work_are_let_through(desk: Any, prompt: str) -> None:
    assert desk.spec(
        f"model: a/b\nconfig: {{tone: x, list: [1]}}\ninputs: [[1, 2], text, {{a: 1, expected: 2}}]\nprompt: '{prompt}'\n"
    )


@pytest.mark.parametrize("params", ["{n: 1}", "{best_of: 1}", "{tools: null}"])
def test_parameters_that_change_nothing_are_taken(desk: Any, params: str) -> None:
    desk.read(f"{GOOD}params: {params}\n")
