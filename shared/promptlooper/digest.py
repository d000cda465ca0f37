"""SHA-256 over canonical bytes: the same value gives the same digest in every process and version."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any


def canonical(value: Any) -> bytes:
    """Type-tagged, length-prefixed bytes of a JSON value. Keys are sorted; 1 and 1.0 are one number, as in JSON;
    True is not 1; NaN and infinities raise ValueError, other types TypeError."""
    parts: list[bytes] = []
    _walk(value, parts)
    return b"".join(parts)


def _walk(value: Any, parts: list[bytes]) -> None:
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        parts.append(b"s%d:" % len(data))
        parts.append(data)
    elif value is None:
        parts.append(b"n")
    elif value is True:
        parts.append(b"t")
    elif value is False:
        parts.append(b"f")
    elif isinstance(value, int):
        parts.append(b"i%d;" % value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value!r} has no canonical form")
        parts.append(b"i%d;" % int(value) if value.is_integer() else b"d" + float.hex(value).encode() + b";")
    elif isinstance(value, Mapping):
        parts.append(b"o%d:" % len(value))
        for key in sorted(value):
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is not text")
            _walk(key, parts)
            _walk(value[key], parts)
    elif isinstance(value, list | tuple):
        parts.append(b"a%d:" % len(value))
        for item in value:
            _walk(item, parts)
    else:
        raise TypeError(f"{type(value).__name__} has no canonical form")


def sha256_hex(value: Any) -> str:
    """64 hex digits of the canonical form's SHA-256."""
    return hashlib.sha256(canonical(value)).hexdigest()
