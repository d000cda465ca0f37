"""Durations, money and patterns: how small values are written in experiment files."""

from __future__ import annotations

import math
import re
from decimal import Decimal

from promptlooper.jsonvalue import Json, json_text

PROJECT = re.compile(r"[a-z0-9-]{1,40}")
STAGE_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
SCORER_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")


def noun(value: Json) -> str:
    """What a value is, in the words of who writes the file."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the boolean {json_text(value)}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value if len(value) <= 40 else value[:40] + '…'!r}"
    return "a list" if isinstance(value, list | tuple) else "a mapping"


def is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_integer(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def seconds(value: Json) -> float:
    """`500ms`, `60s`, `2m`, `1h`, `30d` or a number of seconds. Raises ValueError with a sentence."""
    if is_number(value):
        found = float(value)  # type: ignore[arg-type]
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        found = round(float(match[1]) * _UNITS[match[2]], 6)
    else:
        raise ValueError(f"{noun(value)} is not a duration; write it like 500ms, 60s, 2m, 1h or 30d")
    if not 0.001 <= found <= 3.2e9:
        raise ValueError(f"{noun(value)} is not a duration of at least 1 ms and at most 100 years")
    return found


def nanousd(value: Json) -> int:
    """Dollars as integer nano-USD. Raises ValueError with a sentence."""
    if not is_number(value) or not 0 < float(value) <= 1e9:  # type: ignore[arg-type]
        raise ValueError(f"{noun(value)} is not an amount of dollars above 0")
    return max(1, int(Decimal(str(value)) * 10**9))
