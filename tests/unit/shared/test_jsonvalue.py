"""What counts as the JSON value of an output."""

from __future__ import annotations

from typing import Any

import pytest

from promptlooper.jsonvalue import json_text, parsed_output


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        (" [1, 2]\n", [1, 2]),
        ("3", None),
        ('"text"', None),
        ("", None),
        ("{broken", None),
        ("[" * 5000 + "]" * 5000, None),
        ("[" * 201 + "]" * 201, None),
        ('{"a":' * 201 + "1" + "}" * 201, None),
        (f"[{'[],' * 999}[]]", [[]] * 1000),
    ],
)
def test_parsed_output_is_an_object_or_an_array_or_null(output: str, value: Any) -> None:
    assert parsed_output(output) == value


def test_deepest_parsed_output_can_be_written_inside_of_other_values() -> None:
    output = "[" * 200 + "]" * 200
    assert output in json_text({"runs": [{"stages": [{"parsed": parsed_output(output)}]}]})
