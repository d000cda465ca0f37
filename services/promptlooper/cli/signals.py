"""Runs a command's coroutine so that Ctrl-C and SIGTERM end it cleanly once, and at once the second time."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

Answer = TypeVar("Answer")

_SHOW_CURSOR = "\x1b[?25h"  # a live bar hides it


class Interrupted(Exception):
    """A signal ended the command; everything that it had opened is closed."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        return 128 + self.signum


def run_interruptibly(main: Coroutine[Any, Any, Answer]) -> Answer:
    """Raises Interrupted after a signal, when `main` has been cancelled and has closed what it opened."""
    received: list[int] = []

    async def guarded() -> Answer:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()

        def on_signal(signum: int) -> None:
            if received:
                _leave_now(signum)
            received.append(signum)
            task.cancel()

        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, on_signal, signum)
        try:
            return await task
        finally:
            for signum in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(signum)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            answer = runner.run(guarded())
    except asyncio.CancelledError:
        if not received:
            raise
        raise Interrupted(received[0]) from None
    if received:
        raise Interrupted(received[0])
    return answer


def _leave_now(signum: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(_SHOW_CURSOR)
        sys.stderr.flush()
    os._exit(128 + signum)
