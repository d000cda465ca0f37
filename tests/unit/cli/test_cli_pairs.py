from __future__ import annotations

from typing import Any

import click
import pytest

from promptlooper.cli.pairs import key_json


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("temperature=0.7", ("temperature", 0.7)),
        ("stop=[1]", ("stop", [1])),
        ("name=France", ("name", "France")),
        ("a=b=c", ("a", "b=c")),
        ("a=", ("a", "")),
        ('a="3"', ("a", "3")),
        ("a=NaN", ("a", "NaN")),
        ("a=off", ("a", "off")),
    ],
)
def test_value_of_a_flag_is_json_if_it_parses_else_text(text: str, pair: tuple[str, Any]) -> None:
    assert key_json(text, "--var") == pair


@pytest.mark.parametrize("text", ["a", "=b", ""])
def test_flag_without_name_and_value_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError, match="is not KEY=VALUE"):
        key_json(text, "--var")
