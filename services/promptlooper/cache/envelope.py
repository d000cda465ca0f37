"""The bytes that are kept for a value. They repeat their key, and what cannot be read back whole is nothing.

PLC1 · stored_at (8, microseconds) · packed (1) · key length (2) · value length (4) · key · value or zlib · crc32 (4)

Behind the zlib stream stand: generation (8) · worth: cost (8, nano-USD, -1 unknown), tokens in and out, latency (4
each) · model length (2) · model. Version 0.1.0 neither writes nor sees that, and reads the value.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from promptlooper.caching import UNKNOWN, Worth

MAX_VALUE = 1024 * 1024
_MAGIC = b"PLC1"
_HEAD = struct.Struct(">4sQBHI")
_BEHIND = struct.Struct(">QqIIIH")
_CRC = struct.Struct(">I")
_PACK_FROM = 2048  # bytes; below, packing costs more than it saves: it stands in the stream as it is
_MOST = 2**32 - 1
IDENTITY = 24
"""So many first bytes tell one stored value of a key from another: they hold the time and the length."""


@dataclass(frozen=True, slots=True)
class Opened:
    value: bytes
    stored_at: float  # seconds since the epoch
    generation: int = 0  # of purges; see purges.py
    model: str = ""  # "" where it is not known
    worth: Worth = UNKNOWN


def sealed(key: str, contents: Opened) -> bytes:
    name, model, worth, value = key.encode(), contents.model.encode(), contents.worth, contents.value
    head = _HEAD.pack(_MAGIC, int(contents.stored_at * 1e6), 1, len(name), len(value))
    behind = _BEHIND.pack(
        contents.generation,
        -1 if worth.cost_nanousd is None else worth.cost_nanousd,
        *(min(number, _MOST) for number in (worth.tokens_in, worth.tokens_out, worth.latency_ms)),
        len(model),
    )
    data = b"".join((head, name, zlib.compress(value, 1 if len(value) > _PACK_FROM else 0), behind, model))
    return data + _CRC.pack(zlib.crc32(data))


def opened(key: str, data: bytes) -> Opened | None:
    """None where the bytes are not whole, of another version, or of another key."""
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
    value, behind = data[start:end], b""
    if packed:
        stream = zlib.decompressobj()
        try:
            value = stream.decompress(value, length + 1)
        except zlib.error:
            return None
        behind = stream.unused_data
    if len(value) != length:
        return None
    return _with_what_stands_behind(value, micros / 1e6, behind)


def _with_what_stands_behind(value: bytes, stored_at: float, behind: bytes) -> Opened | None:
    if not behind:
        return Opened(value, stored_at)
    if len(behind) < _BEHIND.size:
        return None
    generation, cost, tokens_in, tokens_out, latency_ms, length = _BEHIND.unpack_from(behind)
    model = behind[_BEHIND.size : _BEHIND.size + length].decode(errors="replace")
    worth = Worth(tokens_in, tokens_out, latency_ms, None if cost < 0 else cost)
    return Opened(value, stored_at, generation, model, worth)
