"""Input rows: inline or from a data file, with their ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from promptlooper.digest import sha256_hex
from promptlooper.experiment import InputRow
from promptlooper.jsonvalue import Json
from promptlooper.runner.spec.problems import FilePosition, nearest
from promptlooper.runner.spec.values import is_integer, noun
from promptlooper.strict_json import json_parsed

SPECIAL = ("expected", "_id", "_tags", "_metadata")
LATER = ("_scorers", "_weight")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows, with what `position` makes a file and line of, for each: a line of a data file, or the index in a list."""

    rows: tuple[InputRow, ...]
    places: tuple[int, ...]
    position: Callable[[int], FilePosition]

    def kept(self, indices: Sequence[int]) -> Rows:
        return Rows(tuple(self.rows[i] for i in indices), tuple(self.places[i] for i in indices), self.position)


def sampled(count: int, size: int, seed: int) -> list[int]:
    """`size` of `count` indices, in order; the same for a seed on every machine and version."""
    if size >= count:
        return list(range(count))
    ranked = sorted(range(count), key=lambda i: hashlib.sha256(b"%d:%d" % (seed, i)).digest())
    return sorted(ranked[:size])


def row_of(value: Json) -> InputRow:
    """The row without an id. Raises ValueError with a sentence."""
    if not isinstance(value, dict):
        return InputRow("", value)
    special = [key for key in value if key[:1] == "_" or key == "expected"]
    if not special:
        return InputRow("", value)
    for key in special:
        if key in LATER:
            raise ValueError(f"{key!r} is not available yet")
        if key not in SPECIAL:
            raise ValueError(f"{key!r} is not a key of rows that begins with _{nearest(key, SPECIAL[1:])}")
    rest = {key: item for key, item in value.items() if key not in SPECIAL}
    row_id = value.get("_id")
    if not (row_id is None or is_integer(row_id) or (isinstance(row_id, str) and 0 < len(row_id) <= 200)):
        raise ValueError(f"'_id' must be text of 1 to 200 characters, not {noun(row_id)}")
    return InputRow(
        "" if row_id is None else str(row_id),
        rest,
        value.get("expected"),
        _tags(value.get("_tags")),
        _metadata(value.get("_metadata")),
    )


def _tags(value: Json) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(tag.strip() for tag in value.split(",") if tag.strip())
    if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
        return tuple(value)
    raise ValueError(f"'_tags' must be a list of texts, not {noun(value)}")


def _metadata(value: Json) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):  # a cell of a CSV file
        value, problems = json_parsed(value)
        if problems:
            raise ValueError("'_metadata' must be a mapping of texts, or in CSV a JSON object")
    if not isinstance(value, dict):
        raise ValueError(f"'_metadata' must be a mapping of texts, not {noun(value)}")
    for key, item in value.items():
        if not isinstance(item, str):
            raise ValueError(f"'_metadata': {key!r} must be text, not {noun(item)}; put it in quotes")
    return value


def with_ids(rows: Sequence[InputRow]) -> list[InputRow]:
    """Rows without an id get the SHA-256 of their value, 16 hex; a second equal row gets `-2`. Raises ValueError with
    a sentence where two rows say the same `_id`."""
    taken: set[str] = set()
    for row in rows:
        if row.input_id:
            if row.input_id in taken:
                raise ValueError(f"two rows have the '_id' {row.input_id!r}")
            taken.add(row.input_id)
    counts: dict[str, int] = {}
    found: list[InputRow] = []
    for row in rows:
        if not row.input_id:
            base = sha256_hex(row.value)[:16]
            count = counts.get(base, 0) + 1
            while (name := base if count == 1 else f"{base}-{count}") in taken:
                count += 1
            counts[base] = count
            taken.add(name)
            row = InputRow(name, row.value, row.expected, row.tags, row.metadata)
        found.append(row)
    return found
