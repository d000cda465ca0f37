"""JSON texts as plain values, as strict as the YAML ones, with the line of every key where one is asked for."""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NoReturn

Path = tuple[str | int, ...]

_BLANK = re.compile(r"[ \t\r\n]*")
_LITERAL = re.compile(r"[^\s,:\[\]{}\"]+")


class _Duplicate(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Duplicate
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def json_parsed(text: str) -> tuple[Any, list[tuple[int, str]]]:
    """The value, and (line, sentence) of what is wrong. Of two equal keys the last stays."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_constant), []
    except _Duplicate:
        doubles: list[tuple[int, str]] = []
        json_lines(text, doubles)
        return json.loads(text), [(line, f"the key {key!r} is there twice; remove one") for line, key in doubles]
    except json.JSONDecodeError as error:
        return None, [(error.lineno, f"this is not JSON: {error.msg} at column {error.colno}")]
    except RecursionError:
        return None, [(1, "values are nested too deeply")]
    except ValueError as error:
        return None, [(1, f"this is not JSON: {error}")]


def json_lines(text: str, doubles: list[tuple[int, str]] | None = None) -> dict[Path, int]:
    """The line of every key and item of a well-formed JSON text; keys that are there twice are added to `doubles`."""
    lines: dict[Path, int] = {}
    counted, line = 0, 1

    def line_at(position: int) -> int:
        nonlocal counted, line
        line += text.count("\n", counted, position)
        counted = position
        return line

    def skip(position: int) -> int:
        match = _BLANK.match(text, position)
        return match.end() if match else position

    def value(position: int, path: Path) -> int:
        position = skip(position)
        lines.setdefault(path, line_at(position))
        sign = text[position]
        if sign == '"':
            return int(scanstring(text, position + 1)[1])
        if sign not in "{[":
            match = _LITERAL.match(text, position)
            return match.end() if match else position + 1
        seen: set[str] = set()
        index = 0
        position = skip(position + 1)
        while text[position] not in "}]":
            if text[position] == ",":
                position = skip(position + 1)
            if sign == "{":
                here = line_at(position)
                key, position = scanstring(text, position + 1)
                if key in seen and doubles is not None:
                    doubles.append((here, key))
                seen.add(key)
                lines.setdefault((*path, key), here)
                position = skip(value(skip(position) + 1, (*path, key)))
            else:
                position = skip(value(position, (*path, index)))
                index += 1
        return position + 1

    value(0, ())
    return lines
