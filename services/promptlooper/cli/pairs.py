"""`KEY=VALUE` on the command line."""

from __future__ import annotations

from typing import Any

import click

from promptlooper.jsonvalue import json_value


def key_value(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"{option} {text!r} is not KEY=VALUE.")
    return key, value


def key_json(text: str, option: str) -> tuple[str, Any]:
    """The value as JSON if it parses, else as text."""
    key, value = key_value(text, option)
    try:
        return key, json_value(value)
    except ValueError:
        return key, value
