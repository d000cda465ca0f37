"""The bytes that are kept for a value. They repeat their key, and what cannot be read back whole is nothing.

PLC2 · stored_at (8, microseconds) · packed (1) · generation (8) · worth: cost (8, nano-USD, -1 unknown), tokens in and
out, latency (4 each) · lengths of key (2), model (2) and value (4) · key · model · value or zlib · crc32 (4)

PLC1, of the first version, has neither generation nor worth nor model.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from promptlooper.caching import UNKNOWN, Worth

MAX_VALUE = 1024 * 1024
_MAGIC, _FIRST = b"PLC2", b"PLC1"
_HEAD = struct.Struct(">4sQBQqIIIHHI")
_FIRST_HEAD = struct.Struct(">4sQBHI")
_CRC = struct.Struct(">I")
_PACK_FROM = 2048  # bytes; below, packing costs more than it saves
_MOST = 2**32 - 1
IDENTITY = 24
"""So many first bytes tell one stored value of a key from another: they hold the time and the generation."""


@dataclass(frozen=True, slots=True)
class Opened:
    value: bytes
    stored_at: float  # seconds since the epoch
    generation: int = 0  # of purges; see purges.py
    model: str = ""  # "" where it is not known
    worth: Worth = UNKNOWN


def sealed(key: str, contents: Opened) -> bytes:
    name, model, worth, body, packed = key.encode(), contents.model.encode(), contents.worth, contents.value, 0
    if len(body) > _PACK_FROM:
        smaller = zlib.compress(body, 1)
        if len(smaller) < len(body):
            body, packed = smaller, 1
    head = _HEAD.pack(
        _MAGIC,
        int(contents.stored_at * 1e6),
        packed,
        contents.generation,
        -1 if worth.cost_nanousd is None else worth.cost_nanousd,
        *(min(number, _MOST) for number in (worth.tokens_in, worth.tokens_out, worth.latency_ms)),
        len(name),
        len(model),
        len(contents.value),
    )
    data = head + name + model + body
    return data + _CRC.pack(zlib.crc32(data))


def opened(key: str, data: bytes) -> Opened | None:
    """None where the bytes are not whole, of another version, or of another key."""
    magic = data[:4]
    head = _HEAD if magic == _MAGIC else _FIRST_HEAD
    if magic not in (_MAGIC, _FIRST) or len(data) < head.size + _CRC.size:
        return None
    if head is _HEAD:
        _, micros, packed, generation, cost, tokens_in, tokens_out, latency_ms, *lengths = head.unpack_from(data)
        worth = Worth(tokens_in, tokens_out, latency_ms, None if cost < 0 else cost)
        name_length, model_length, length = lengths
    else:
        _, micros, packed, name_length, length = head.unpack_from(data)
        generation, worth, model_length = 0, UNKNOWN, 0
    end = len(data) - _CRC.size
    after_name = head.size + name_length
    start = after_name + model_length
    if data[head.size : after_name] != key.encode() or start > end or length > MAX_VALUE:
        return None
    if zlib.crc32(memoryview(data)[:end]) != _CRC.unpack_from(data, end)[0]:
        return None
    body = data[start:end]
    if packed:
        try:
            body = zlib.decompressobj().decompress(body, length + 1)
        except zlib.error:
            return None
    if len(body) != length:
        return None
    return Opened(body, micros / 1e6, generation, data[after_name:start].decode(errors="replace"), worth)
