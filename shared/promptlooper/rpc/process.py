"""A service's process: event loop, logging, signals, exit code."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable

from promptlooper.errors import DomainError, InvalidArgument
from promptlooper.telemetry import set_up_logging
from promptlooper.tracing import recording

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_COLLECTED_AFTER = 10_000  # objects more than before; by default 700, which calls under way have at any time
_CLEANING_UP = 3.0  # seconds beyond the grace of calls, for what comes after them


def run_service(main: Callable[[], Awaitable[None]], *, name: str | None = None) -> None:
    """Runs `main` to its end and leaves the process: 0, 1 where it failed, 2 where a setting is wrong.

    A signal before `main` waits in `until_signalled` cancels it, and the exit code is 128 + signal, as of a process
    that a signal ended. `name` is what log lines carry; by default the service's part of the module of `main`.
    """
    # Before the settings are read, since what is wrong with them is logged; they refuse a level that is none.
    level = os.environ.get("PROMPTLOOPER_LOG_LEVEL", "info").upper()
    name = name or _name_of(main)
    form = os.environ.get("PROMPTLOOPER_LOG_FORMAT", "text").lower()
    set_up_logging(name, level if level in logging.getLevelNamesMapping() else "info", form)
    sys.exit(_run(main, name))


def _run(main: Callable[[], Awaitable[None]], name: str) -> int:
    received: list[signal.Signals] = []

    async def with_signals() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: signal.Signals) -> None:
            received.append(number)
            task.cancel()

        for number in _SIGNALS:
            loop.add_signal_handler(number, stop, number)
        await main()

    gc.freeze()  # what is imported stays
    gc.set_threshold(_COLLECTED_AFTER)
    try:
        with recording(name), asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(with_signals())
    except asyncio.CancelledError:
        return 128 + received[0] if received else 1
    except InvalidArgument as error:
        for line in str(error).splitlines():  # of each mistake in a file
            _log.error("%s", line)
        return 2
    except DomainError as error:
        _log.error("%s", error)
        return 1
    except Exception:
        _log.exception("stopped by a fault")
        return 1
    return 0


async def until_signalled(grace: float | None = None) -> signal.Signals:
    """Waits for SIGTERM or SIGINT and says which. From then on a second one ends the process at once.

    With `grace` the process has so many seconds, and a few more, to end: then it is ended, whatever holds it. The exit
    code is 128 + signal in both cases.
    """
    loop = asyncio.get_running_loop()
    first: asyncio.Future[signal.Signals] = loop.create_future()

    def receive(number: signal.Signals) -> None:
        if first.done():
            os._exit(128 + number)
        first.set_result(number)
        if grace is not None:
            _leave_after(grace + _CLEANING_UP, number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, receive, number)
    number = await first
    _log.info("%s: stopping; once more stops at once", number.name)
    return number


def _leave_after(seconds: float, number: signal.Signals) -> None:
    """In a thread: what holds the process may hold the event loop."""

    def leave() -> None:
        _log.error("still not stopped %g s after %s: leaving what there is", seconds, number.name)
        os._exit(128 + number)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _name_of(main: Callable[[], Awaitable[None]]) -> str:
    module = main.__module__
    if module == "__main__" and (spec := getattr(sys.modules["__main__"], "__spec__", None)) is not None:
        module = spec.name
    parts = module.split(".")
    return parts[1] if parts[0] == "promptlooper" and len(parts) > 1 else parts[-1]
