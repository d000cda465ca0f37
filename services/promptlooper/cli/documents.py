"""JSON on stdout."""

from __future__ import annotations

import sys
from typing import Any

import orjson


def print_document(value: Any) -> None:
    """One line, so that it is also a line of JSON Lines; flushed, because a reader may wait for it."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE).decode())
    sys.stdout.flush()
