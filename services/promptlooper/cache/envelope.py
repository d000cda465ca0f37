"""The bytes that are kept for a value. They repeat their key, and what cannot be read back whole is nothing.

PLC1 · stored_at (8, microseconds) · packed (1) · key length (2) · value length (4) · key · value or zlib · crc32 (4)
"""

from __future__ import annotations

import struct
import zlib

MAX_VALUE = 1024 * 1024
_MAGIC = b"PLC1"
_HEAD = struct.Struct(">4sQBHI")
_CRC = struct.Struct(">I")
_PACK_FROM = 2048  # bytes; below, packing costs more than it saves
IDENTITY = 24
"""So many first bytes tell one stored value of a key from another: they hold the time and the length."""


def sealed(key: str, value: bytes, stored_at: float) -> bytes:
    """`stored_at` in seconds since the epoch."""
    name = key.encode()
    body, packed = value, 0
    if len(value) > _PACK_FROM:
        smaller = zlib.compress(value, 1)
        if len(smaller) < len(value):
            body, packed = smaller, 1
    head = _HEAD.pack(_MAGIC, int(stored_at * 1e6), packed, len(name), len(value))
    data = head + name + body
    return data + _CRC.pack(zlib.crc32(data))


def opened(key: str, data: bytes) -> tuple[bytes, float] | None:
    """Value and stored_at; None where the bytes are not whole, of another version, or of another key."""
    name = key.encode()
    start = _HEAD.size + len(name)
    if len(data) < start + _CRC.size or data[:4] != _MAGIC:
        return None
    _, micros, packed, name_length, length = _HEAD.unpack_from(data)
    if name_length != len(name) or data[_HEAD.size : start] != name or length > MAX_VALUE:
        return None
    end = len(data) - _CRC.size
    if zlib.crc32(memoryview(data)[:end]) != _CRC.unpack_from(data, end)[0]:
        return None
    body = data[start:end]
    if packed:
        try:
            body = zlib.decompressobj().decompress(body, length + 1)
        except zlib.error:
            return None
    return (body, micros / 1e6) if len(body) == length else None
