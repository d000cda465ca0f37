"""Filters, tests and operators of templates: Jinja2's own where they are harmless, bounded where they are not.

Left out: what is random (`random`, `lipsum`), what reaches attributes (`attr`), and HTML helpers.
"""

from __future__ import annotations

import functools
import html
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import Environment, pass_environment
from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_TESTS
from jinja2.filters import do_batch, do_wordwrap, make_attrgetter, sync_do_slice
from jinja2.runtime import Undefined
from promptlooper.runner.budget import (
    MAX_BITS,
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

Function = Callable[..., Any]

_MAX_WIDTH = 10_000


def _cost(value: Any) -> int:
    if isinstance(value, str):
        return len(value) >> 8
    if isinstance(value, list | tuple | dict):
        return len(value) >> 2
    return 0


def _settled(value: Any) -> Any:
    if isinstance(value, str):
        return sized_text(str(value))
    if value is None or isinstance(value, int | float | Undefined):
        return value
    if isinstance(value, list | tuple | dict | range | StageData):
        return measured(value)
    return measured(listed(value))


def bounded(function: Function) -> Function:
    """The function with its work paid for and its result within the limits; iterators become lists."""

    @functools.wraps(function)  # keeps Jinja2's mark that says what is passed first
    def call(*args: Any, **kwargs: Any) -> Any:
        spend(2 + sum(map(_cost, args)))
        return _settled(function(*args, **kwargs))

    return call


def _paid(function: Function) -> Function:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        spend(1 + sum(map(_cost, args)))
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


def _width(width: Any) -> int:
    if not isinstance(width, int) or abs(width) > _MAX_WIDTH:
        raise LimitExceeded(f"{width!r} is not a width of at most {_MAX_WIDTH:,}")
    return width


def center(value: Any, width: int = 80) -> str:
    return text_of(value).center(_width(width))


def indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = text_of(value)
    if isinstance(width, int):
        _width(width)
    check_size((len(width) if isinstance(width, str) else width) * (text.count("\n") + 1) + len(text))
    return str(DEFAULT_FILTERS["indent"](text, width, first, blank))


def replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = text_of(value), text_of(old), text_of(new)
    found = text.count(old) if count is None or count < 0 else min(text.count(old), count)
    check_size(len(text) + found * max(0, len(new) - len(old)))
    return text.replace(old, new, -1 if count is None else count)


def joined(values: Iterable[Any], separator: Any = "") -> str:
    parts = [text_of(item) for item in listed(values)]
    separator = text_of(separator)
    check_size(sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


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
    spend(len(text) >> 3)
    check_size(len(text) * max(1, len(wrapstring)))
    return do_wordwrap(environment, text, _width(width), break_long_words, wrapstring, break_on_hyphens)


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
        raise TypeError(f"items takes a mapping, not {_noun(value)}")
    return list(value.items())


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


_SPEC = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d+))?")


def formatted(pattern: Any, *args: Any, **kwargs: Any) -> str:
    """printf: `"%.2f" | format(x)`."""
    text = text_of(pattern)
    if args and kwargs:
        raise TypeError("format takes values by place or by name, not both")
    size = len(text)
    for spec in _SPEC.finditer(text):
        for number in spec.groups():
            if number is not None:
                if number == "*" or len(number) > 5:
                    raise LimitExceeded(f"{number!r} is not a width of at most {_MAX_WIDTH:,}")
                size += _width(int(number))
    values = [v if isinstance(v, int | float | str) and not isinstance(v, bool) else text_of(v) for v in args]
    named = {k: v if isinstance(v, int | float | str) else text_of(v) for k, v in kwargs.items()}
    check_size(size + sum(len(str(v)) for v in (*values, *named.values())))
    return text % (named or tuple(values))


def _noun(value: Any) -> str:
    if value is None:
        return "null"
    names = {str: "text", bool: "a boolean", int: "a number", float: "a number", dict: "a mapping", list: "a list"}
    return names.get(type(value), f"a {type(value).__name__}")


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _within(bits: int) -> None:
    if bits > MAX_BITS:
        raise LimitExceeded(f"the template makes a number of more than {MAX_BITS:,} bits")


def add(left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        spend((len(left) + len(right)) >> 8)
        check_size(len(left) + len(right))
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return measured([*left, *right])
    elif not isinstance(left, int | float | Undefined) or not isinstance(right, int | float | Undefined):
        raise TypeError(f"cannot add {_noun(left)} and {_noun(right)}; join texts with ~")
    else:
        _within(max(_bits(left), _bits(right)) + 1)
    return left + right


def multiply(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, str | list | tuple):
        left, right = right, left
    if isinstance(left, str) and isinstance(right, int):
        check_size(len(left) * max(0, right))
        spend(len(left) * max(0, right) >> 8)
    elif isinstance(left, list | tuple) and isinstance(right, int):
        if len(left) * max(0, right) > MAX_ITEMS:
            raise LimitExceeded(f"the template makes a value of more than {MAX_ITEMS:,} items")
        return measured(list(left) * right)
    else:
        _within(_bits(left) + _bits(right))
    return left * right


def power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and right > 0 and abs(left) > 1:
        _within(_bits(left) * right)
    return left**right


def modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        if isinstance(right, Mapping):
            return formatted(left, **{str(k): v for k, v in right.items()})
        return formatted(left, *(right if isinstance(right, tuple) else (right,)))
    return left % right


OPERATORS: dict[str, Function] = {
    "+": add,
    "-": operator.sub,
    "*": multiply,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": power,
    "%": modulo,
}

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
    "unique",
    "urlencode",
]

FILTERS: dict[str, Function] = {
    **{name: bounded(DEFAULT_FILTERS[name]) for name in _AS_THEY_ARE},
    **{name: bounded(_of_text(name)) for name in _OF_TEXT},
    "batch": bounded(_counted(do_batch)),
    "center": bounded(center),
    "e": bounded(lambda value: html.escape(text_of(value))),
    "escape": bounded(lambda value: html.escape(text_of(value))),
    "format": bounded(formatted),
    "indent": bounded(indent),
    "items": bounded(items),
    "join": bounded(join),
    "replace": bounded(replace),
    "round": bounded(rounded),
    "safe": bounded(text_of),
    "slice": bounded(_counted(sync_do_slice)),
    "string": bounded(text_of),
    "sum": bounded(total),
    "tojson": bounded(tojson),
    "wordwrap": bounded(wordwrap),
}

TESTS: dict[str, Function] = {
    name: _paid(test) for name, test in DEFAULT_TESTS.items() if name not in ("callable", "escaped")
}


STRING_METHODS: dict[str, Function] = {
    **{
        name: bounded(getattr(str, name))
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
    "replace": bounded(replace),
}
"""Methods of texts that templates may call: `input.name.upper()`."""
