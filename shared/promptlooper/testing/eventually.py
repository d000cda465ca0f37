"""Waiting in tests: for what will be, not for time to pass."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")


async def eventually(condition: Callable[[], T | Awaitable[T]], within: float = 10.0) -> T:
    """The first truthy value of `condition`, asked again and again; an AssertionError in it counts as "not yet".

    Raises AssertionError after `within` seconds, with what the condition said last.
    """
    until = time.monotonic() + within
    pause = 0.002
    while True:
        said = ""
        try:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return cast(T, value)
            said = f"it is {value!r}"
        except AssertionError as error:
            said = str(error)
        if time.monotonic() > until:
            raise AssertionError(f"not within {within:g} s: {said}")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.05)
