"""Page tokens and page sizes of the list calls."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from promptlooper.digest import sha256_hex
from promptlooper.errors import InvalidArgument, PageTokenInvalid
from promptlooper.jsonvalue import json_text, json_value

DEFAULT_PAGE, LARGEST_PAGE = 50, 1_000


def page_size_of(asked: int) -> int:
    if asked < 0:
        raise InvalidArgument(f"page_size {asked} is negative; 0 is {DEFAULT_PAGE}", field="page_size")
    return min(asked or DEFAULT_PAGE, LARGEST_PAGE)


def page_token(place: Sequence[int | str], bound_to: Sequence[object]) -> str:
    """Opaque to clients, and good only for the filter that it was made with."""
    text = json_text([sha256_hex(list(bound_to))[:12], *place])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def place_of(token: str, bound_to: Sequence[object]) -> list[Any] | None:
    """None for no token."""
    if not token:
        return None
    try:
        digest, *place = list[Any](json_value(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))))
    except (ValueError, TypeError, binascii.Error) as error:
        raise PageTokenInvalid(f"page token {token!r} was not given by this server; start without it") from error
    if digest != sha256_hex(list(bound_to))[:12]:
        raise PageTokenInvalid("the page token is of another filter; start without it")
    return place
