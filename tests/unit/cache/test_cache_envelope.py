"""The bytes that are kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptlooper.cache.envelope import MAX_VALUE, opened, sealed

KEY = "default.default:" + "ab" * 32


@given(value=st.binary(max_size=5000), stored_at=st.integers(0, 4_000_000_000))
def test_sealed_value_opens_with_its_key(value: bytes, stored_at: int) -> None:
    assert opened(KEY, sealed(KEY, value, stored_at)) == (value, stored_at)


@given(data=st.data())
def test_flipped_bit_or_cut_makes_it_nothing(data: st.DataObject) -> None:
    whole = sealed(KEY, data.draw(st.sampled_from([b"", b"short", b"long " * 1000])), 1.5)
    place = data.draw(st.integers(0, len(whole) * 8 - 1))
    flipped = bytearray(whole)
    flipped[place // 8] ^= 1 << place % 8
    assert opened(KEY, bytes(flipped)) is None
    assert opened(KEY, whole[: place // 8]) is None
    assert opened(KEY, whole + b"x") is None


@given(st.binary(max_size=300))
def test_any_bytes_are_nothing_and_raise_nothing(junk: bytes) -> None:
    assert opened(KEY, junk) is None
    assert opened(KEY, b"PLC1" + junk) is None


def test_value_of_another_key_is_nothing() -> None:
    other = "default.default:" + "ba" * 32
    assert opened(other, sealed(KEY, b"v", 1.0)) is None


def test_long_text_is_packed_and_noise_is_not() -> None:
    import random

    noise = random.Random(1).randbytes(10_000)
    assert len(sealed(KEY, b"word " * 2000, 1.0)) < 500
    assert len(sealed(KEY, noise, 1.0)) < len(noise) + 200
    assert opened(KEY, sealed(KEY, noise, 1.0)) == (noise, 1.0)


@pytest.mark.parametrize("size", [2048, 2049, MAX_VALUE])
def test_values_at_the_bounds_come_back(size: int) -> None:
    assert opened(KEY, sealed(KEY, b"x" * size, 2.0)) == (b"x" * size, 2.0)


def test_packed_bytes_that_say_a_wrong_length_are_nothing() -> None:
    import struct
    import zlib

    body = zlib.compress(b"x" * 1_000_000)
    head = struct.pack(">4sQBHI", b"PLC1", 1, 1, len(KEY), 10)
    data = head + KEY.encode() + body
    assert opened(KEY, data + struct.pack(">I", zlib.crc32(data))) is None
