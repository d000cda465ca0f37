"""Filters, tests and methods of templates: Jinja2's own where they are harmless, bounded where they are not.

Left out: what is random (`random`, `lipsum`), what reaches attributes (`attr`), and HTML helpers.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import Environment, pass_environment
from jinja2.filters import FILTERS as DEFAULT_FILTERS
from jinja2.filters import do_batch, do_wordwrap, ignore_case, make_attrgetter, sync_do_slice
from jinja2.runtime import Context, Undefined
from jinja2.tests import TESTS as DEFAULT_TESTS

from promptlooper.runner import work
from promptlooper.runner.budget import (
    MAX_ITEMS,
    LimitExceeded,
    StageData,
    check_size,
    json_of,
    listed,
    measured,
    sized_text,
    spend,
    text_of,
)
from promptlooper.runner.operators import add, formatted, is_large, noun, sized_number, width_of
from promptlooper.runner.work import pay_for_wrapping

Function = Callable[..., Any]


def settled(value: Any) -> Any:
    """The value within the limits; what can be gone through once becomes a list."""
    if isinstance(value, str):
        return sized_text(str(value))
    if value is None or isinstance(value, float | Undefined):
        return value
    if isinstance(value, int):
        return sized_number(value)
    if isinstance(value, list | tuple | dict | range | StageData):
        return measured(value)
    return measured(listed(value))


def bounded(function: Function, pay: Callable[..., None] = work.pay) -> Function:
    """The function with its work paid for and its result within the limits; iterators become lists."""

    @functools.wraps(function)  # keeps Jinja2's mark that says what is passed first
    def call(*args: Any, **kwargs: Any) -> Any:
        spend(2)
        pay(*(args[1:] if args and isinstance(args[0], Environment | Context) else args), *kwargs.values())
        return settled(function(*args, **kwargs))

    return call


def _paid(function: Function, pay: Callable[..., None]) -> Function:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        spend(1)
        pay(*(args[1:] if args and isinstance(args[0], Environment) else args), *kwargs.values())
        return function(*args, **kwargs)

    return call


def _of_text(name: str) -> Function:
    """The filter on what the value prints as, so that null and true are the words that a template prints."""
    function: Function = DEFAULT_FILTERS[name]
    passes = getattr(function, "jinja_pass_arg", None) is not None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        head, value, rest = (args[:1], args[1], args[2:]) if passes else ((), args[0], args[1:])
        return function(*head, text_of(value), *rest, **kwargs)

    return call


def center(value: Any, width: int = 80) -> str:
    return text_of(value).center(width_of(width))


def indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = text_of(value)
    if isinstance(width, int):
        width_of(width)
    check_size((len(width) if isinstance(width, str) else width) * (text.count("\n") + 1) + len(text))
    return str(DEFAULT_FILTERS["indent"](text, width, first, blank))


def replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, before, after = text_of(value), text_of(old), text_of(new)
    found = text.count(before) if count is None or count < 0 else min(text.count(before), count)
    check_size(len(text) + found * max(0, len(after) - len(before)))
    return text.replace(before, after, -1 if count is None else count)


def joined(values: Iterable[Any], separator: Any = "") -> str:
    parts = [text_of(item) for item in listed(values)]
    between = text_of(separator)
    check_size(sum(map(len, parts)) + len(between) * len(parts))
    return between.join(parts)


@pass_environment
def join(environment: Environment, value: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), listed(value))
    return joined(value, d)


@pass_environment
def wordwrap(
    environment: Environment,
    value: Any,
    width: int = 79,
    break_long_words: bool = True,
    wrapstring: str = "\n",
    break_on_hyphens: bool = True,
) -> str:
    text = text_of(value)
    pay_for_wrapping(text, width_of(width))
    check_size(len(text) * max(1, len(wrapstring)))
    return str(do_wordwrap(environment, text, width, break_long_words, wrapstring, break_on_hyphens))


def total(value: Iterable[Any], start: Any = 0) -> Any:
    result = start
    for number in listed(value):
        if not isinstance(number, int | float) or not isinstance(result, int | float):
            raise TypeError("sum takes numbers only; join texts with `| join`")
        result = add(result, number)
    return result


def tojson(value: Any, indent: int | None = None) -> str:
    """Plain JSON: without the HTML escapes of Jinja2's own, which a model would have to undo."""
    if isinstance(value, Undefined):
        str(value)  # raises
    return json_of(value, indent=indent is not None)


def items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Undefined):
        str(value)  # raises
    if not isinstance(value, Mapping):
        raise TypeError(f"items takes a mapping, not {noun(value)}")
    return list(value.items())


@pass_environment
def unique(
    environment: Environment, value: Iterable[Any], case_sensitive: bool = False, attribute: str | int | None = None
) -> list[Any]:
    """By their texts where numbers are so large that anybody can choose thousands with one hash."""
    key_of = make_attrgetter(environment, attribute, postprocess=None if case_sensitive else ignore_case)
    found: dict[Any, Any] = {}
    for item in listed(value):
        key = key_of(item)
        found.setdefault(str(key) if is_large(key) else key, item)
    return list(found.values())


def rounded(value: Any, precision: int = 0, method: str = "common") -> Any:
    if not isinstance(precision, int) or abs(precision) > 300:
        raise LimitExceeded(f"{precision!r} is not a precision of at most 300")
    return DEFAULT_FILTERS["round"](value, precision, method)


def _counted(function: Function) -> Function:
    def call(value: Any, count: int, fill_with: Any = None) -> Any:
        if not isinstance(count, int) or not 1 <= count <= MAX_ITEMS:
            raise LimitExceeded(f"{count!r} is not a number from 1 to {MAX_ITEMS:,}")
        spend(count)
        return function(listed(value), count, fill_with)

    return call


_OF_TEXT = ("capitalize", "lower", "striptags", "title", "trim", "truncate", "upper", "wordcount")
_AS_THEY_ARE = [
    "abs",
    "d",
    "default",
    "dictsort",
    "filesizeformat",
    "count",
    "first",
    "float",
    "groupby",
    "int",
    "last",
    "length",
    "list",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
    "sort",
    "urlencode",
]

_FILTERS: dict[str, Function] = {
    **{name: DEFAULT_FILTERS[name] for name in _AS_THEY_ARE},
    **{name: _of_text(name) for name in _OF_TEXT},
    "batch": _counted(do_batch),
    "center": center,
    "e": lambda value: html.escape(text_of(value)),
    "escape": lambda value: html.escape(text_of(value)),
    "format": formatted,
    "indent": indent,
    "items": items,
    "join": join,
    "replace": replace,
    "round": rounded,
    "safe": text_of,
    "slice": _counted(sync_do_slice),
    "string": text_of,
    "sum": total,
    "tojson": tojson,
    "unique": unique,
    "wordwrap": wordwrap,
}
FILTERS: dict[str, Function] = {
    name: bounded(function, work.FILTERS.get(name, work.pay)) for name, function in _FILTERS.items()
}

_JINJA_TESTS: dict[str, Any] = dict(DEFAULT_TESTS)
TESTS: dict[str, Function] = {
    name: _paid(test, work.TESTS.get(name, work.pay))
    for name, test in _JINJA_TESTS.items()
    if name not in ("callable", "escaped")
}


STRING_METHODS: dict[str, Function] = {
    **{
        name: bounded(getattr(str, name), work.METHODS.get(name, work.pay))
        for name in [
            "capitalize",
            "count",
            "endswith",
            "find",
            "isalnum",
            "isalpha",
            "isdigit",
            "islower",
            "isnumeric",
            "isspace",
            "isupper",
            "lower",
            "lstrip",
            "removeprefix",
            "removesuffix",
            "rfind",
            "rsplit",
            "rstrip",
            "split",
            "splitlines",
            "startswith",
            "strip",
            "swapcase",
            "title",
            "upper",
        ]
    },
    "join": bounded(lambda separator, values: joined(values, separator)),
    "replace": bounded(replace, work.METHODS["replace"]),
}
"""Methods of texts that templates may call: `input.name.upper()`."""
