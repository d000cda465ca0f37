"""Rendering: what templates see, what they may not do, and what their errors say."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from promptlooper.completion import Message
from promptlooper.errors import TemplateError
from promptlooper.experiment import ExperimentSpec, InputRow, MessageTemplate, Stage
from promptlooper.run import StageResult
from promptlooper.runner.render import Renderer, StagesView, scorer_variables, variables

SPEC = ExperimentSpec(
    name="x", pipelines=(), inputs=(), config={"tone": "formal", "style": {"long": True}}, files={"book": "{{ 1 }}\n"}
)


def result(output: str, name: str = "", index: int = 0) -> StageResult:
    return StageResult(
        stage_index=index,
        name=name,
        messages=(Message("user", "hi"),),
        output=output,
        model="m",
        model_requested="mock/m",
        params={},
        tokens_in=3,
        tokens_out=4,
        tokens_reasoning=None,
        tokens_cached_in=None,
        latency_ms=5,
        ttft_ms=None,
        cost_nanousd=None,
        cost_saved_nanousd=None,
        cached=False,
        attempts=1,
        finish_reason="stop",
    )


def of(value: Any, expected: Any = None) -> dict[str, object]:
    return variables(SPEC, InputRow("i", value, expected, ("hard",)), [], 0)


@pytest.fixture
def renderer() -> Renderer:
    return Renderer()


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ input.items }}", "[1,2]"),
        ("{{ input.keys }}|{{ input.get }}|{{ input['values'] }}", "k|g|v"),
        ("{{ input.zero }}|{{ input.no }}|{{ input.empty }}|{{ input.list }}", "0|false||[]"),
        ("{{ input.nothing }}|{{ input.yes }}", "null|true"),
        ("{{ input.deep }}", '{"a":[1,{"b":"ü"}],"c":1.0}'),
        ("{{ input.deep.a[1].b }}{{ input.deep.a.0 }}{{ input['deep']['c'] }}", "ü11.0"),
        ("{{ input['2024'] }}{{ input[2024] }}", "yearyear"),
        ("{{ 'deep: ' ~ input.deep.a ~ none }}", 'deep: [1,{"b":"ü"}]null'),
        ("{{ input.name.upper() }} {{ input.name[1:3] }} {{ input.name.replace('e', 'E') }}", "FRANCE ra FrancE"),
        ("{{ input.deep | tojson }}", '{"a":[1,{"b":"ü"}],"c":1.0}'),
        ("{{ input.html }}{{ input.html | tojson }}", """<b> & '"<b> & '\""""),
        ("{% for k, v in input.deep | items %}{{ k }}={{ v }};{% endfor %}", 'a=[1,{"b":"ü"}];c=1.0;'),
        ("{% for x in input.items %}{{ loop.index }}:{{ x }}{{ ',' if not loop.last }}{% endfor %}", "1:1,2:2"),
        ("{{ input.missing | default('none') }}", "none"),
        ("{% if input.missing is defined %}y{% else %}n{% endif %}", "n"),
        ("{{ config.tone }} {{ config.style.long }} {{ tags }} {{ stage_index }}", 'formal true ["hard"] 0'),
        ("{{ files.book }}", "{{ 1 }}\n"),
        ("[{{ prev_output }}]", "[]"),
        ("{{ input.items | map('string') | map('upper') | join('+') }}", "1+2"),
        ("{{ [3, 1, 2] | sort }} {{ [1, 2, 3] | sum }} {{ [1, 2, 3] | batch(2) }} {{ [1, 2, 3] | slice(2) }}",
         "[1,2,3] 6 [[1,2],[3]] [[1,2],[3]]"),
        ("{% macro bold(x) %}*{{ x }}*{% endmacro %}{{ bold(1) }}", "*1*"),
        ("{% set ns = namespace(n=0) %}{% for x in input.items %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}", "3"),
        ("{{ '%.2f of %s' | format(0.5, input.deep.a) }}", '0.50 of [1,{"b":"ü"}]'),
        ("{{ '<' | e }}{{ true | lower }}{{ none | upper }}", "&lt;trueNULL"),
        ("{% for g in [{'k': 1}] | groupby('k') %}{{ g.grouper }}{{ g.list }}{% endfor %}", '1[{"k":1}]'),
        ("line\n", "line\n"),
        ("{{ input.name }}\n", "France\n"),
        ("{% raw %}{{ x }}{% endraw %}", "{{ x }}"),
        ("{# nothing #}", ""),
        ("{{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 10 }} {{ 0.1 + 0.2 }} {{ 'ab' * 2 }}", "3 3 1024 0.30000000000000004 abab"),
    ],
)  # fmt: skip
def test_template_prints_values_as_the_interface_says(renderer: Renderer, source: str, text: str) -> None:
    value = {
        "items": [1, 2],
        "keys": "k",
        "get": "g",
        "values": "v",
        "zero": 0,
        "no": False,
        "empty": "",
        "list": [],
        "nothing": None,
        "yes": True,
        "deep": {"a": [1, {"b": "ü"}], "c": 1.0},
        "name": "France",
        "html": "<b> & '",
        "2024": "year",
    }
    assert renderer.text(source, of(value)) == text


@pytest.mark.parametrize("value", [0, False, "", [], None, 1.0, "x", [1], {"a": 1}])
def test_value_that_is_one_expression_keeps_its_type(renderer: Renderer, value: Any) -> None:
    found = renderer.value("{{ input }}", of(value))
    assert found == value
    assert type(found) is type(value)


def test_value_renders_every_text_inside_and_leaves_the_rest(renderer: Renderer) -> None:
    value = {"path": "$.a", "equals": "{{ expected }}", "list": ["{{ expected.n }}", "n={{ expected.n }}", 3, None]}
    found = renderer.value(value, of({}, {"n": 4}))
    assert found == {"path": "$.a", "equals": {"n": 4}, "list": [4, "n=4", 3, None]}


@pytest.mark.parametrize(
    ("source", "found"), [(" {{ input }}", " 3"), ("{{ input }}{{ input }}", "33"), ("{{- input -}}", 3)]
)
def test_only_a_text_that_is_nothing_but_the_expression_keeps_the_type(
    renderer: Renderer, source: str, found: Any
) -> None:
    assert renderer.value(source, of(3)) == found


def test_value_must_fit_into_json(renderer: Renderer) -> None:
    for source in ("{{ 10 ** 30 }}", "{{ range }}", "{{ (-1) ** 0.5 }}", "{{ stages.foo }}"):
        with pytest.raises(TemplateError):
            renderer.value(source, of(None))


def test_output_that_looks_like_a_template_is_passed_on_as_text(renderer: Renderer) -> None:
    hostile = "{{ 7*7 }}{% for x in y %}{# #}{% endraw %}{{ config }}"
    seen = variables(SPEC, InputRow("i", {"q": hostile}), [result(hostile, "think")], 1)
    source = "{{ prev_output }}|{{ stages[0].output }}|{{ stages.think.output }}|{{ input.q }}"
    assert renderer.text(source, seen) == "|".join([hostile] * 4)
    assert renderer.value("{{ prev_output }}", seen) == hostile


def test_stages_are_known_by_index_and_by_name(renderer: Renderer) -> None:
    found = {"stages": StagesView([result('{"a": [1]}', "think"), result("plain", index=1)])}
    assert renderer.text("{{ stages[0].parsed.a }}{{ stages.think.tokens_in }}", found) == "[1]3"
    assert renderer.text('{{ stages["think"].model }}{{ stages[-1].output }}{{ stages | length }}', found) == "mplain2"
    assert renderer.text("{% for s in stages %}{{ s.latency_ms }}{% endfor %}{{ stages[1].parsed }}", found) == "55null"
    text = '[{"role":"user","content":"hi"}][]'
    assert renderer.text("{{ stages[0].messages }}{{ stages[0].tool_calls }}", found) == text
    assert renderer.text("{{ stages.think }}", found).startswith('{"output":"{\\"a\\": [1]}","parsed":{"a":[1]},')


def test_stage_that_is_not_there_is_named(renderer: Renderer) -> None:
    for source in ("{{ stages[2].output }}", "{{ stages.zzz.output }}", "{{ stages[0].outptu }}"):
        with pytest.raises(TemplateError) as caught:
            renderer.text(source, {"stages": StagesView([result("a", "think")])})
        assert caught.value.metadata["variable"].startswith("stages")


def test_prev_output_is_empty_at_the_first_stage_and_scorers_know_the_output(renderer: Renderer) -> None:
    row = InputRow("i", None, "Paris")
    results = [result("one", "think"), result("two", index=1)]
    assert variables(SPEC, row, [], 0)["prev_output"] == ""
    assert variables(SPEC, row, results[:1], 1)["prev_output"] == "one"
    found = scorer_variables(SPEC, row, results)
    assert renderer.text("{{ output }} {{ prev_output }} {{ stage_index }} {{ expected }}", found) == "two one 1 Paris"
    assert renderer.text("{{ stages | length }}{{ stages[1].output }}", found) == "2two"


def test_messages_of_a_stage_are_rendered_in_order(renderer: Renderer) -> None:
    stage = Stage((MessageTemplate("system", "Be {{ config.tone }}."), MessageTemplate("user", "{{ input }}?")))
    assert renderer.messages(stage, of("why")) == (Message("system", "Be formal."), Message("user", "why?"))


@pytest.mark.parametrize(
    ("source", "variable", "said"),
    [
        ("{{ input.contry }}", "input.contry", "did you mean 'country'"),
        ("{{ input['contry'] }}", "input.contry", "did you mean 'country'"),
        ("{{ input.deep.q.r }}", "input.deep.q", "not there"),
        ("{{ input.list[7] }}", "input.list[7]", "not there"),
        ("{{ 'a' ~ input.gone }}", "input.gone", "not there"),
        ("{{ input.gone + 1 }}", "input.gone", "not there"),
        ("{{ input.gone == 1 }}", "input.gone", "not there"),
        ("{{ [input.gone] }}", "input.gone", "not there"),
        ("{{ input.gone | upper }}", "input.gone", "not there"),
        ("{{ input.gone | tojson }}", "input.gone", "not there"),
        ("{% for x in input.gone %}{% endfor %}", "input.gone", "not there"),
        ("{% if input.gone %}{% endif %}", "input.gone", "not there"),
        ("{% for k in input.gone | items %}{% endfor %}", "input.gone", "not there"),
        ("{{ input.items() }}", "input.items", "| items"),
        ("{{ nowhere }}", "nowhere", "not there"),
        ("{{ config.tonne }}", "config.tonne", "did you mean 'tone'"),
        ("{% for m in input.list %}{{ m.role }}{% endfor %}", "m.role", "not there"),
    ],
)
def test_missing_variable_is_named(renderer: Renderer, source: str, variable: str, said: str) -> None:
    with pytest.raises(TemplateError) as caught:
        renderer.text(source, of({"country": "France", "deep": {"a": 1}, "list": [{"x": 1}]}))
    assert caught.value.metadata["variable"] == variable
    assert said in caught.value.message
    with pytest.raises(TemplateError) as caught:
        renderer.value(source, of({"country": "France", "deep": {"a": 1}, "list": [{"x": 1}]}))
    assert caught.value.metadata["variable"] == variable


def grown(start: str, step: str) -> str:
    loop = "{% for i in range(99) %}{% set ns.x = " + step + " %}{% endfor %}"
    return "{% set ns = namespace(x=" + start + ") %}" + loop + "{{ ns.x }}"


HOSTILE = {
    "one range over the cap": "{{ range(10**12) }}",
    "nested ranges under the cap": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "literal text times a number": "{{ 'a' * 300000000 }}",
    "text times a number from a value": "{{ input.s * 300000000 }}",
    "list times a number": "{{ [1] * 300000000 }}",
    "literal power": "{{ 7 ** 3000000 }}",
    "power tower": "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
    "power of a value": "{{ input.n ** 3000000 }}",
    "product of large numbers": grown("9**999", "ns.x * ns.x"),
    "doubling by plus": grown("'a'", "ns.x + ns.x"),
    "doubling by tilde": grown("'a'", "ns.x ~ ns.x"),
    "doubling by lists": grown("[1]", "ns.x + ns.x"),
    "doubling by nesting": grown("1", "[ns.x, ns.x]"),
    "doubling by dict": grown("1", "dict(a=ns.x, b=ns.x)"),
    "doubling by batch": grown("1", "[ns.x] | batch(2, ns.x)"),
    "doubling by set block": "{% set x = 'a' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 40,
    "join with a giant separator": "{{ range(90000) | join(input.s * 100) }}",
    "replace amplification": "{{ (input.s * 1000) | replace('s', 's' * 10000) }}",
    "replace method": "{{ (input.s * 1000).replace('s', 's' * 10000) }}",
    "join method": "{{ (input.s * 1000).join(range(9000)) }}",
    "center": "{{ 'x' | center(1000000000) }}",
    "indent": "{{ ('a\n' * 10000) | indent(10000) }}",
    "wordwrap": "{{ ('a ' * 10000) | wordwrap(1, wrapstring='x' * 10000) }}",
    "printf width": "{{ '%1000000000d' | format(3) }}",
    "printf star": "{{ '%*d' | format(1000000000, 3) }}",
    "printf operator": "{{ '%1000000000d' % 3 }}",
    "batch count": "{{ [1] | batch(1000000000, 1) }}",
    "slice count": "{{ [1] | slice(1000000000) }}",
    "round": "{{ 3 | round(-1000000000) }}",
    "sum of lists": "{{ [[1], [2]] | sum(start=[]) }}",
    "self-recursive macro": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "exponential macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "wide recursive loop": "{% for x in range(999) recursive %}{{ loop(range(999)) if loop.depth < 4 }}{% endfor %}",
    "much output": "{% for x in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "much output in a block": "{% set x %}{% for x in range(99999) %}" + "x" * 1000 + "{% endfor %}{% endset %}",
    "slices in a loop": "{% set x = 'a' * 1000000 %}{% for i in range(99999) %}{% set y = x[1:] %}{% endfor %}",
    "searches in a loop": "{% set x = 'a' * 1000000 %}{% for i in range(99999) %}{{ 'b' in x }}{% endfor %}",
    "wordwrap of a long word": "{{ (input.s * 1000000) | wordwrap(1) }}",
    "wordwrap of a middling word": "{{ (input.s * 90000) | wordwrap(1) }}",
    "printf with a name used often": "{{ ('%(a)s' * 100000) | format(a=input.s * 900000) }}",
    "printf with brackets in a name": "{{ '%(a(b))1000000000s' | format(**{'a(b)': 1}) }}",
    "printf with names that never end": "{{ ('%(' * 500000) | format(1) }}",
    "printf with escapes": "{{ '%r' | format('\U000e0000' * 900000) }}",
    "search from the end": "{{ (input.s * 900000).rfind('s' ~ 'b' ~ 's' * 90000) }}",
    "split from the end": "{{ (input.s * 900000).rsplit('s' ~ 'b' ~ 's' * 90000) }}",
    "strip of many characters": "{{ (input.s * 900000).strip('b' * 90000 ~ 's') }}",
    "trim of many characters": "{{ (input.s * 900000) | trim(chars='b' * 90000 ~ 's') }}",
    "short searches in a loop": "{% for i in range(9999) %}"
    "{{ ('s' * 600 ~ 'b' ~ 's' * 600) in ('s' * 2400) }}{% endfor %}",
    "sort of one long text many times": "{{ ([input.s * 900000] * 90000) | sort }}",
    "unique of one long text many times": "{{ ([input.s * 900000] * 90000) | unique }}",
    "group by one long text many times": "{{ ([[input.s * 900000]] * 30000) | groupby(0) }}",
    "equal lists of long texts": "{{ ([input.s * 900000] * 90000) == ([input.s * 900000] * 90000) }}",
    "equal lists of long texts in a test": "{{ ([input.s * 900000] * 90000) is eq([input.s * 900000] * 90000) }}",
    "long text in a list": "{{ input.s * 900000 in [input.s * 900000 ~ 'x'] * 90000 }}",
    "keys with one hash": "{{ dict(range(0, 20000 * (2**61 - 1), 2**61 - 1) | batch(2)) }}",
    "titles in a loop": "{% for i in range(9) %}{{ (input.s * 900000) | title | length }}{% endfor %}",
    "urlencode of long texts": "{{ [['a', '\U000e0000' * 900000]] * 900 | urlencode }}",
    "digits in a loop": "{% for i in range(99999) %}{{ (input.s * 4000).replace('s', '1') | int }}{% endfor %}",
    "deep parentheses": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "deep lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "deep ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "filter chain": "{{ 1" + "|abs" * 20000 + " }}",
    "unary chain": "{{ " + "-" * 20000 + "1 }}",
    "long sum": "{{ 1" + "+1" * 50000 + " }}",
    "long source": "{{ 1 }}" + "x" * 300_000,
    "lipsum": "{{ lipsum(n=1000) }}",
    "cycler": "{{ cycler(1, 2) }}",
    "random": "{{ [1, 2] | random }}",
    "class walk": "{{ ''.__class__.__mro__ }}",
    "class walk by subscript": "{{ ''['__class__'] }}",
    "class walk of a mapping": "{{ input.__class__ }}{{ input['__class__'] }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "attribute of map": "{{ [''] | map(attribute='__class__') | list }}",
    "attribute of sort": "{{ ['', ''] | sort(attribute='__class__') }}",
    "attribute of sum": "{{ [''] | sum(attribute='__class__') }}",
    "format walk": "{{ '{0.__class__}'.format(1) }}",
    "format_map walk": "{{ '{a.__class__}'.format_map(input) }}",
    "function globals": "{{ range.__globals__ }}{{ namespace.__init__ }}{{ dict.__class__ }}",
    "macro globals": "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "loop internals": "{% for x in [1] %}{{ loop._iterator }}{% endfor %}",
    "namespace internals": "{% set ns = namespace() %}{{ ns.__class__ }}{{ ns._Namespace__attrs }}",
    "mutate a list": "{{ input.list.append(1) }}",
    "mutate a mapping": "{{ input.update({'a': 1}) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'x' as y %}",
    "from import": "{% from 'x' import y %}",
    "extends": "{% extends 'x' %}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "autoescape": "{% autoescape true %}{% endautoescape %}",
    "do": "{% do 1 %}",
    "debug": "{% debug %}",
    "self": "{{ self }}",
    "print a function": "{{ range }}{{ dict }}",
    "print a method": "{{ input.s.upper }}",
    "call a value": "{{ input.s() }}",
    "lone surrogate in json": "{{ ['\\ud800'] | tojson }}",
    "division by zero": "{{ 1 / 0 }}",
    "infinity": "{{ [1e308 * 10] }}",
    "text plus number": "{{ 'a' + 1 }}",
    "bad syntax": "{{ a",
    "unknown filter": "{{ 1 | nope }}",
    "unknown test": "{{ 1 is nope }}",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_or_broken_template_is_refused_with_one_sentence(renderer: Renderer, name: str) -> None:
    with pytest.raises(TemplateError) as caught:
        renderer.text(HOSTILE[name], of({"s": "s", "n": 7, "list": [1]}))
    assert caught.value.message
    assert "Traceback" not in caught.value.message
    assert len(caught.value.message) < 300


def test_numbers_with_one_hash_are_told_apart_without_comparing_them_all(renderer: Renderer) -> None:
    source = "{{ range(0, 20000 * (2**61 - 1), 2**61 - 1) | unique | length }}"
    assert renderer.text(source, of(None)) == "20000"


def test_bounded_filters_and_operators_give_what_python_gives(renderer: Renderer) -> None:
    value = {"s": "a long sentence", "list": [3, 1, 3.0, "B", "b", "a"], "maps": [{"k": 1}, {"k": 1.0}, {"k": 2}]}
    for source, text in [
        ("{{ input.s | wordwrap(6) }}", "a long\nsenten\nce"),
        ("{{ input.list | unique }}", '[3,1,"B","a"]'),
        ("{{ input.list | unique(true) }}", '[3,1,"B","b","a"]'),
        ("{{ input.maps | unique(attribute='k') | length }}", "2"),
        ("{{ 'long' in input.s }} {{ 3 not in input.list }} {{ 'a' < 'b' in 'abc' != 'x' }}", "true false true"),
        ("{{ 'x' in input.s or 'a' in ('a', 'b') and 'k' in input.maps[0] }}", "true"),
        ("{{ '%(a)s-%(b)5.1f%%' | format(a='x', b=2) }} {{ '%5d|%-3s|%x' % (3, 'a', 255) }}", "x-  2.0%     3|a  |ff"),
        ("{{ dict([('a', 1)], b=2) }}{{ dict(input.maps[0], c=3) }}", '{"a":1,"b":2}{"k":1,"c":3}'),
        ("{% for x in input.maps %}{{ 'x' if loop.changed(x.k) }}{{ loop.cycle(1, [2]) }}{% endfor %}", "x1[2]x1"),
    ]:
        assert renderer.text(source, of(value)) == text, source


def test_templates_leave_their_values_as_they_are(renderer: Renderer) -> None:
    value = {"list": [3, 1], "map": {"a": 1}}
    source = "{% set input = 3 %}{{ [2] | sort }}{% set ns = namespace(x=expected.list) %}{{ ns.x | sort }}{{ input }}"
    assert renderer.text(source, of(value, value)) == "[2][1,3]3"
    assert value == {"list": [3, 1], "map": {"a": 1}}


def test_a_bounded_template_does_not_spoil_the_next(renderer: Renderer) -> None:
    with pytest.raises(TemplateError):
        renderer.text(HOSTILE["nested ranges under the cap"], of(None))
    assert renderer.text("{% for i in range(1000) %}x{% endfor %}", of(None)) == "x" * 1000


def test_renderer_is_shared_by_threads(renderer: Renderer) -> None:
    outcomes: list[str] = []

    def work(number: int) -> None:
        for _ in range(50):
            outcomes.append(renderer.text("{% for i in range(100) %}{{ input }}{% endfor %}", of(number)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(outcomes)) == [str(n) * 100 for n in range(4)]


def test_rendering_is_the_same_every_time(renderer: Renderer) -> None:
    random.seed(1)
    source = "{{ input.b }}{{ input | dictsort }}{% for x in input.list | unique %}{{ x }}{% endfor %}"
    value = {"b": {"z": 1, "a": 2}, "list": ["q", "a", "q"]}
    assert {Renderer().text(source, of(value)) for _ in range(20)} == {renderer.text(source, of(value))}


def test_template_is_recognised_by_its_signs(renderer: Renderer) -> None:
    assert all(map(renderer.is_template, ("{{ a }}", "{% if 1 %}", "x {# y #}")))
    assert not any(map(renderer.is_template, ("", "plain", "{ a }", "100%", "}}")))


def test_references_say_what_a_template_uses(renderer: Renderer) -> None:
    found = renderer.references(
        "{% set q = 1 %}{{ q.a }}{% for m in input.rows %}{{ m.x }}{{ config.a['b'][0] }}{% endfor %}\n"
        "{{ stages[-1].output }}{{ input.hint | default('') }}{{ range(3) }}{{ nowhere }}"
        "{% if input.opt is defined %}{{ input.opt.deep }}{% endif %}"
    )
    assert dict(found.roots) == {"input": 1, "config": 1, "stages": 2, "nowhere": 2}
    assert [(str(path), path.guarded) for path in found.paths] == [
        ("input.rows", False),
        ("config.a.b[0]", False),
        ("stages[-1].output", False),
        ("input.hint", True),
        ("nowhere", False),
        ("input.opt", True),
        ("input.opt.deep", True),
    ]
    assert renderer.references("plain").roots == {}


def test_syntax_error_says_the_line(renderer: Renderer) -> None:
    with pytest.raises(TemplateError) as caught:
        renderer.references("one\ntwo {{ x y }}")
    assert caught.value.metadata["line"] == "2"
