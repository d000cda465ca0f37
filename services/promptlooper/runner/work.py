"""What the work of filters, tests and methods costs in steps, by what they were measured to take: a microsecond a step.

Python's own functions are linear only on friendly values: wrapping a long word copies it again for every line, searches
from the end and stripping compare everything with everything, and sorting copies every text that it compares.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from promptlooper.runner.budget import measured, spend

_Pay = Callable[..., None]

_LONGEST_SEARCH = 2000  # steps that a search can take beyond its reading: from some size on Python's is linear
_WORD = re.compile(r"[^\t\n\x0b\x0c\r ]+")  # as textwrap has it


def pay(*args: Any) -> None:
    """For a glance at each argument: most functions."""
    for value in args:
        if isinstance(value, str):
            spend(len(value) >> 8)
        elif isinstance(value, tuple):
            measured(value)  # of prefixes: each is compared
        elif isinstance(value, list | dict):
            spend(len(value) >> 2)


def _characters_by(shift: int) -> _Pay:
    def pay_for_text(*args: Any) -> None:
        for value in args:
            if isinstance(value, str):
                spend(len(value) >> shift)
            else:
                pay(value)

    return pay_for_text


def _search(text: Any, *args: Any) -> None:
    """Forwards: quadratic up to some thousand characters, then linear (CPython's two-way search)."""
    pay(text, *args)
    for part in args:
        if isinstance(text, str) and isinstance(part, str):
            spend(min(len(text) * len(part) >> 10, _LONGEST_SEARCH) + (len(text) >> 8))


def _splitting(text: Any, *args: Any) -> None:
    _search(text, *args)
    if isinstance(text, str):
        spend(len(text) >> 6)


def _all_pairs(text: Any, *args: Any) -> None:
    """Backwards, and stripping: quadratic for any size."""
    _splitting(text, *args)
    for part in args:
        if isinstance(text, str) and isinstance(part, str):
            spend(len(text) * len(part) >> 10)


def _items(*args: Any) -> None:
    """Of functions that go through all items: a text's items are its characters."""
    for value in args:
        if isinstance(value, str | range):
            spend(len(value))
        else:
            pay(value)


def _keys(*args: Any) -> None:
    """Of functions that compare items, and make a copy in small letters of each text."""
    for value in args:
        if isinstance(value, str | range | list | tuple | dict):
            spend(2 * len(value))
        if not isinstance(value, str):
            measured(value, characters_per_step=64)


def _nested_text(value: Any, *args: Any) -> None:
    pay(*args)
    measured(value, characters_per_step=8)


def pay_for_comparing(*args: Any) -> None:
    for value in args:
        measured(value)


def pay_for_wrapping(text: str, width: int) -> None:
    """A word that is longer than a line is copied once for each of its lines."""
    spend(2 * len(text))
    copied = sum(len(word) * len(word) for word in _WORD.findall(text))
    spend(copied // max(1, width) >> 13)


def pay_for_containing(value: Any, holder: Any) -> None:
    if isinstance(holder, str):
        _search(holder, value)
    else:
        pay_for_comparing(value, holder)


FILTERS: dict[str, _Pay] = {
    **dict.fromkeys(("capitalize", "e", "escape", "lower", "upper"), _characters_by(6)),
    **dict.fromkeys(("striptags", "title"), _characters_by(3)),
    **dict.fromkeys(("dictsort", "groupby", "max", "min", "sort", "unique"), _keys),
    **dict.fromkeys(("batch", "list", "map", "reject", "select", "slice"), _items),
    "int": _characters_by(5),
    "replace": _search,
    "trim": _all_pairs,
    "urlencode": _nested_text,
    "wordcount": _characters_by(4),
}
METHODS: dict[str, _Pay] = {
    **dict.fromkeys(("capitalize", "lower", "swapcase", "title", "upper"), _characters_by(6)),
    **dict.fromkeys(("count", "find", "replace"), _search),
    **dict.fromkeys(("lstrip", "rfind", "rsplit", "rstrip", "strip"), _all_pairs),
    **dict.fromkeys(("split", "splitlines"), _splitting),
}
TESTS: dict[str, _Pay] = {
    **dict.fromkeys(("==", "!=", ">", ">=", "<", "<="), pay_for_comparing),
    **dict.fromkeys(("eq", "equalto", "ne", "gt", "greaterthan", "ge", "lt", "lessthan", "le"), pay_for_comparing),
    "in": pay_for_containing,
}
