"""Cells of data files: text unless a type is asked for, and how they are compared."""

from __future__ import annotations

from collections.abc import Callable

from promptlooper.jsonvalue import Json, json_text
from promptlooper.strict_json import json_parsed


def matches(value: Json, wanted: Json) -> bool:
    """Whether they are equal, or print the same (`3` and `"3"`); a list of wanted values means one of them."""
    if isinstance(wanted, list) and not isinstance(value, list):
        return any(matches(value, one) for one in wanted)
    if value == wanted and isinstance(value, bool) == isinstance(wanted, bool):
        return True
    if value is None or wanted is None:
        return False
    return _printed(value) == _printed(wanted)


def _printed(value: Json) -> str:
    return value if isinstance(value, str) else json_text(value)


def _integer(cell: str) -> Json:
    try:
        number = int(cell) if len(cell) < 30 and "_" not in cell else None
    except ValueError:
        number = None
    if number is None or not -(2**63) <= number < 2**64:
        raise ValueError(f"{cell[:40]!r} is not an integer")
    return number


def _float(cell: str) -> Json:
    try:
        number = float(cell) if "_" not in cell else float("nan")
    except ValueError:
        number = float("nan")
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(f"{cell[:40]!r} is not a number")
    return number


def _boolean(cell: str) -> Json:
    found = {"true": True, "false": False}.get(cell.strip().lower())
    if found is None:
        raise ValueError(f"{cell[:40]!r} is not true or false")
    return found


def _json(cell: str) -> Json:
    value, problems = json_parsed(cell)
    if problems:
        raise ValueError(f"{cell[:40]!r} is not JSON")
    return value  # type: ignore[no-any-return]


CONVERTERS: dict[str, Callable[[str], Json]] = {
    "text": str,
    "str": str,
    "int": _integer,
    "float": _float,
    "bool": _boolean,
    "json": _json,
}
