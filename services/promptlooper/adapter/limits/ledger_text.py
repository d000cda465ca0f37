"""A ledger as text."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import orjson

from promptlooper.adapter.limits.control import Control
from promptlooper.adapter.limits.ledger import Ledger, Member

_FORM = 1
_CONTROL = {field.name: {"float": float, "int": int, "bool": bool}[str(field.type)] for field in fields(Control)}
_LARGEST = 1e9  # limit that can have been found out


class Unreadable(Exception):
    """It is no ledger's text, or of a form that this version does not know."""


def text_of(ledger: Ledger) -> bytes:
    control = [getattr(ledger.control, name) for name in _CONTROL]
    members = {
        name: (member.lease_until, member.holds, member.wants, member.stock, member.used)
        for name, member in ledger.members.items()
    }
    return orjson.dumps(
        [_FORM, control, ledger.free_at, members, ledger.prober, ledger.probes_until], option=orjson.OPT_NON_STR_KEYS
    )


def ledger_of(text: bytes) -> Ledger:
    """Raises Unreadable."""
    try:
        form, control, free_at, members, prober, probes_until = orjson.loads(text)
        if form != _FORM:
            raise Unreadable(f"form {form!r}")
        known = {name: _member(*fields) for name, fields in members.items()}
        return Ledger(_control(control), _pair(free_at), known, prober=str(prober), probes_until=float(probes_until))
    except (ValueError, TypeError, AttributeError) as error:
        raise Unreadable(str(error)) from error


def _control(values: list[Any]) -> Control:
    known = {name: kind(value) for (name, kind), value in zip(_CONTROL.items(), values, strict=True)}
    if not 0 <= known["limit"] <= _LARGEST:
        raise Unreadable(f"a limit of {known['limit']}")
    return Control(**known)


def _member(lease_until: float, holds: int, wants: int, stock: list[float], used: dict[str, list[float]]) -> Member:
    seconds = {int(second): _pair(pair) for second, pair in used.items()}
    return Member(float(lease_until), int(holds), int(wants), _pair(stock), seconds)


def _pair(values: list[float]) -> list[float]:
    requests, tokens = values
    return [float(requests), float(tokens)]
