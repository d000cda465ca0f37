"""What one rendering may cost: steps, text and items, so that no template can burn the process it runs in."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from jinja2.runtime import Undefined

MAX_STEPS = 200_000  # of one rendering: loop turns, calls, and work in proportion to sizes; some 0.2 s
MAX_TEXT = 1 << 20  # characters of any text, the output included
MAX_ITEMS = 100_000  # of any list or mapping, nested ones counted
MAX_BITS = 4096  # of any integer


class LimitExceeded(Exception):
    """A template asked for more than a rendering may have."""


class StageData:
    """Marks the mappings and sequences of ours that templates may look into like JSON values."""

    __slots__ = ()


class _Steps(threading.local):
    left = MAX_STEPS


_steps = _Steps()


def refill() -> None:
    """Starts a rendering (or a compilation) in this thread."""
    _steps.left = MAX_STEPS


def spend(steps: int) -> None:
    left = _steps.left - steps
    _steps.left = left
    if left < 0:
        raise LimitExceeded(f"the template takes more than {MAX_STEPS:,} steps")


def sized_text(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise LimitExceeded(f"the template makes a text of more than {MAX_TEXT:,} characters")
    return text


def check_size(characters: int) -> None:
    if characters > MAX_TEXT:
        raise LimitExceeded(f"the template makes a text of more than {MAX_TEXT:,} characters")


def measured(value: Any, *, printed: bool = False, characters_per_step: int = 1024) -> Any:
    """The value, after its nodes and texts were paid for. Where it will be `printed`, only JSON is let through."""
    stack: list[Any] = [value]
    nodes = characters = 0
    while stack:
        item = stack.pop()
        nodes += 1
        kind = type(item)
        if kind is str:
            characters += len(item)
        elif kind is int or kind is bool or item is None:
            pass
        elif kind is float:
            if printed and not math.isfinite(item):
                raise ValueError(f"{item!r} is not a number that JSON knows")
        elif kind is dict:
            nodes += len(item)
            stack.extend(item.values())
        elif isinstance(item, list | tuple | range):
            stack.extend(item)
        elif isinstance(item, StageData):
            if isinstance(item, Mapping):
                stack.extend(item.values())
            elif isinstance(item, Sequence):
                stack.extend(item)
        elif isinstance(item, str):
            characters += len(item)
        elif printed and isinstance(item, Undefined):
            str(item)  # raises, with the name
        elif printed:
            raise TypeError(f"a {kind.__name__} is not a value that can be printed")
        if nodes + len(stack) > MAX_ITEMS:
            raise LimitExceeded(f"the template makes a value of more than {MAX_ITEMS:,} items")
        if printed:
            check_size(characters)
    spend((nodes >> 4) + characters // characters_per_step)
    return value


def listed(items: Iterable[Any]) -> Any:
    """The items with a length that is paid for: what is a list already stays itself."""
    if isinstance(items, list | tuple | dict | str | range | StageData):
        spend(len(items))
        return items
    found = []
    for item in items:
        spend(1)
        found.append(item)
    return found


def _jsonable(value: object) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, range | tuple | Sequence) and not isinstance(value, str):
        return list(value)
    if isinstance(value, str | Undefined):
        return str(value)
    raise TypeError(f"a {type(value).__name__} is not a value that can be printed")


def json_of(value: Any, *, indent: bool = False) -> str:
    """Compact JSON of a value in a template."""
    measured(value, printed=True)
    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_SUBCLASS | (orjson.OPT_INDENT_2 if indent else 0)
    return sized_text(orjson.dumps(value, default=_jsonable, option=options).decode())


def plain_json(value: Any) -> Any:
    """The value as plain JSON, fit to be stored: tuples and stages become lists and mappings."""
    if value is None or isinstance(value, bool):
        return value
    kind = type(value)
    if kind is str:
        return sized_text(value)
    if kind is int or kind is float:
        orjson.dumps(value)  # refuses what is beyond 64 bits
        measured(value, printed=True)
        return value
    return orjson.loads(json_of(value))


def text_of(value: Any) -> str:
    """How a value prints: texts as they are, all else as JSON."""
    kind = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if kind is int:
        return str(value)
    if isinstance(value, str | Undefined):
        return str(value)  # raises for what is missing; an `if` without `else` is ""
    return json_of(value)
