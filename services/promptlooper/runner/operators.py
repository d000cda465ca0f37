"""Operators of templates, and printf: bounded, with messages in the words of who writes templates."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2.runtime import Undefined

from promptlooper.runner.budget import MAX_BITS, MAX_ITEMS, LimitExceeded, check_size, measured, spend, text_of

_MAX_WIDTH = 10_000


def width_of(width: Any) -> int:
    if not isinstance(width, int) or abs(width) > _MAX_WIDTH:
        raise LimitExceeded(f"{width!r} is not a width of at most {_MAX_WIDTH:,}")
    return width


_SPEC = re.compile(
    r"%(?:\((?P<name>[^()]*)\))?[-#0 +]*(?P<width>\*|[0-9]+)?(?:\.(?P<precision>\*|[0-9]+))?[hlL]?(?P<kind>.)?",
    re.DOTALL,
)


def formatted(pattern: Any, *args: Any, **kwargs: Any) -> str:
    """printf: `"%.2f" | format(x)`."""
    text = text_of(pattern)
    spend(len(text) >> 3)
    if args and kwargs:
        raise TypeError("format takes values by place or by name, not both")
    values = [v if isinstance(v, int | float | str) and not isinstance(v, bool) else text_of(v) for v in args]
    named = {k: v if isinstance(v, int | float | str) else text_of(v) for k, v in kwargs.items()}
    size = len(text) + sum(map(_printed_size, values))
    for spec in _SPEC.finditer(text):
        spend(1)
        if spec["kind"] == "(":
            raise TypeError("a name in a format is without brackets: %(name)s")
        for number in (spec["width"], spec["precision"]):
            if number is not None:
                if number == "*" or len(number) > 5:
                    raise LimitExceeded(f"{number!r} is not a width of at most {_MAX_WIDTH:,}")
                size += width_of(int(number))
        size += _printed_size(named.get(spec["name"], ""))
        check_size(size)
    check_size(size)
    return text % (named or tuple(values))


def _printed_size(value: int | float | str) -> int:
    """An upper bound in characters, whatever the kind: %r of a text may take ten for one, %f of 1e308 takes 316."""
    if isinstance(value, str):
        return len(value) if value.isascii() and value.isprintable() and "\\" not in value else 10 * len(value)
    return 330 if isinstance(value, float) else 330 + (value.bit_length() >> 1)


def noun(value: Any) -> str:
    if value is None:
        return "null"
    names = {str: "text", bool: "a boolean", int: "a number", float: "a number", dict: "a mapping", list: "a list"}
    return names.get(type(value), f"a {type(value).__name__}")


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def is_large(value: Any) -> bool:
    """Beyond the numbers that Python hashes to themselves."""
    return isinstance(value, int) and value.bit_length() > 60


def sized_number(value: int) -> int:
    _within(value.bit_length())
    return value


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
        raise TypeError(f"cannot add {noun(left)} and {noun(right)}; join texts with ~")
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


OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": add,
    "-": operator.sub,
    "*": multiply,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": power,
    "%": modulo,
}
