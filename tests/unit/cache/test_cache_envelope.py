"""The bytes that are kept."""

from __future__ import annotations

import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptlooper.cache.envelope import MAX_VALUE, Opened, opened, sealed
from promptlooper.caching import Worth

KEY = "default.default:" + "ab" * 32
OTHER = "default.default:" + "ba" * 32

worths = st.builds(
    Worth,
    *(st.integers(0, 2**32 - 1) for _ in range(3)),
    cost_nanousd=st.none() | st.integers(0, 2**63 - 1),
)
contents = st.builds(
    Opened,
    st.binary(max_size=5000),
    st.integers(0, 4_000_000_000),
    generation=st.integers(0, 2**64 - 1),
    model=st.text(max_size=40),
    worth=worths,
)


@given(contents)
def test_sealed_value_opens_with_its_key(contents: Opened) -> None:
    assert opened(KEY, sealed(KEY, contents)) == contents


@given(data=st.data())
def test_flipped_bit_or_cut_makes_it_nothing(data: st.DataObject) -> None:
    value = data.draw(st.sampled_from([b"", b"short", b"long " * 1000]))
    whole = sealed(KEY, Opened(value, 1.5, 7, "openai/m", Worth(1, 2, 3, 4)))
    place = data.draw(st.integers(0, len(whole) * 8 - 1))
    flipped = bytearray(whole)
    flipped[place // 8] ^= 1 << place % 8
    assert opened(KEY, bytes(flipped)) is None
    assert opened(KEY, whole[: place // 8]) is None
    assert opened(KEY, whole + b"x") is None


@given(st.binary(max_size=300))
def test_any_bytes_are_nothing_and_raise_nothing(junk: bytes) -> None:
    for begin in (b"", b"PLC1", b"PLC2", b"PLC3"):
        assert opened(KEY, begin + junk) is None


def test_value_of_another_key_is_nothing() -> None:
    assert opened(OTHER, sealed(KEY, Opened(b"v", 1.0))) is None


def test_long_text_is_packed_and_noise_is_not() -> None:
    noise = random.Random(1).randbytes(10_000)
    assert len(sealed(KEY, Opened(b"word " * 2000, 1.0))) < 500
    packed = sealed(KEY, Opened(noise, 1.0))
    assert len(packed) < len(noise) + 200
    assert opened(KEY, packed) == Opened(noise, 1.0)


@pytest.mark.parametrize("size", [2048, 2049, MAX_VALUE])
def test_values_at_the_bounds_come_back(size: int) -> None:
    assert opened(KEY, sealed(KEY, Opened(b"x" * size, 2.0))) == Opened(b"x" * size, 2.0)


def test_numbers_beyond_their_room_are_the_most_there_is_room_for() -> None:
    found = opened(KEY, sealed(KEY, Opened(b"v", 1.0, worth=Worth(2**40, 1, 2**32))))
    assert found is not None
    assert found.worth == Worth(2**32 - 1, 1, 2**32 - 1)


def first_version(value: bytes, length: int, *, packed: int = 0) -> bytes:
    """As version 0.1.0 wrote it."""
    data = struct.pack(">4sQBHI", b"PLC1", 2_500_000, packed, len(KEY), length) + KEY.encode() + value
    return data + struct.pack(">I", zlib.crc32(data))


def test_values_of_the_first_version_are_read() -> None:
    assert opened(KEY, first_version(b"value", 5)) == Opened(b"value", 2.5)
    text = b"word " * 1000
    assert opened(KEY, first_version(zlib.compress(text), len(text), packed=1)) == Opened(text, 2.5)
    assert opened(OTHER, first_version(b"value", 5)) is None


def opened_by_the_first_version(data: bytes) -> bytes:
    """What of the bytes version 0.1.0 makes a value of."""
    _, _, packed, name_length, length = struct.unpack_from(">4sQBHI", data)
    assert struct.unpack_from(">I", data, len(data) - 4)[0] == zlib.crc32(data[:-4])
    body = data[19 + name_length : -4]
    value = zlib.decompressobj().decompress(body, length + 1) if packed else body
    assert len(value) == length
    return value


@given(contents)
def test_first_version_reads_our_values(contents: Opened) -> None:
    assert opened_by_the_first_version(sealed(KEY, contents)) == contents.value


def test_what_a_later_version_says_besides_is_not_in_the_way() -> None:
    ours = sealed(KEY, Opened(b"value", 2.5, 3, "openai/m", Worth(1, 2, 3, 4)))[:-4] + b"more"
    assert opened(KEY, ours + struct.pack(">I", zlib.crc32(ours))) == Opened(
        b"value", 2.5, 3, "openai/m", Worth(1, 2, 3, 4)
    )


def test_packed_bytes_that_say_a_wrong_length_are_nothing() -> None:
    assert opened(KEY, first_version(zlib.compress(b"x" * 1_000_000), 10, packed=1)) is None
