"""JSON texts, times, durations and enums on the wire: the conversions that every message needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Generic, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from promptlooper.errors import InvalidArgument
from promptlooper.jsonvalue import json_text, json_value

EnumT = TypeVar("EnumT", bound=Enum)

_JSON_NAMES: dict[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
}


def text_of(value: Any, field: str) -> str:
    """The JSON text of a value. Raises InvalidArgument where it has none."""
    try:
        return json_text(value)
    except TypeError as error:
        raise InvalidArgument(f"{field}: cannot be written as JSON: {error}", field=field) from None


def value_text(value: Any, field: str) -> str:
    """The JSON text of a value, "" for None."""
    return "" if value is None else text_of(value, field)


def object_text(value: Mapping[str, Any], field: str) -> str:
    """The JSON text of an object, "" for an empty one."""
    return text_of(value, field) if value else ""


def value_of(text: str, field: str) -> Any:
    """The value of a JSON text, None for "". Raises InvalidArgument naming the field where it is not JSON."""
    if not text:
        return None
    try:
        return json_value(text)
    except ValueError as error:
        raise InvalidArgument(f"{field}: is not JSON: {error}", field=field) from None


def object_of(text: str, field: str) -> dict[str, Any]:
    """The object of a JSON text, {} for "". Raises InvalidArgument naming the field where it is anything else."""
    if not text or text == "{}":
        return {}
    value = value_of(text, field)
    if not isinstance(value, dict):
        raise InvalidArgument(f"{field}: must be a JSON object, not {_JSON_NAMES[type(value)]}", field=field)
    return value


def milliseconds(seconds: float | None) -> int:
    """Whole milliseconds; None is 0, and what is less than one is 1, since 0 means "not said" on the wire."""
    return 0 if seconds is None else max(1, round(seconds * 1000))


def seconds(ms: int, field: str) -> float | None:
    """Seconds of milliseconds; 0 is None. Raises InvalidArgument where they are negative."""
    if ms < 0:
        raise InvalidArgument(f"{field}: must not be negative, and is {ms}", field=field)
    return ms / 1000 if ms else None


def timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def moment(stamp: Timestamp) -> datetime:
    """UTC-aware."""
    return stamp.ToDatetime(tzinfo=UTC)


def epoch_timestamp(epoch: float) -> Timestamp | None:
    """Of seconds since the epoch; None for 0."""
    if not epoch:
        return None
    whole = math.floor(epoch)
    nanos = round((epoch - whole) * 1e9)
    return Timestamp(seconds=whole + nanos // 10**9, nanos=nanos % 10**9)


def epoch_of(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos / 1e9


@contextmanager
def refusing_misfits(field: str) -> Iterator[None]:
    """Raises InvalidArgument for a number or text that does not fit its proto field."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"{field}: holds a value that cannot be sent: {error}", field=field) from error


class EnumOnWire(Generic[EnumT]):
    """The pairs of a domain enum and its proto enum, by name.

    A member without a proto value fails at import; a number without a member raises InvalidArgument, and so does 0
    unless `unspecified` says what it means.
    """

    def __init__(self, members: type[EnumT], proto: Any, prefix: str, *, unspecified: EnumT | None = None) -> None:
        self.members = members
        self.proto = proto
        self.prefix = prefix
        self._numbers = {member: proto.Value(prefix + member.name) for member in members}
        self._members: dict[int, EnumT] = {number: member for member, number in self._numbers.items()}
        if unspecified is not None:
            self._members[0] = unspecified

    def number(self, member: EnumT) -> Any:
        return self._numbers[member]

    def member(self, number: int, field: str) -> EnumT:
        try:
            return self._members[number]
        except KeyError:
            known = ", ".join(f"{self.prefix}{member.name}" for member in self.members)
            raise InvalidArgument(
                f"{field}: {number} is not a value that this version knows; it knows {known}", field=field
            ) from None
