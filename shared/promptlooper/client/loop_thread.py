"""An event loop in a thread of its own, for callers that have none or must not wait in theirs."""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import aclosing, suppress
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_AHEAD = 64  # items of a stream that may wait for their reader


class LoopThread:
    """Runs coroutines for any thread. Its own thread starts with the first one and ends with `close`, at the latest
    when the interpreter does: it is a daemon, so that a client which is never closed keeps no process from ending."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # again: a forgotten client is stopped in whatever thread forgot it
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = 0
        self._closed = False

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its answer. Who is interrupted while waiting, cancels it."""
        future = self._begun(coroutine)
        try:
            return future.result()
        except CancelledError:
            raise _closed() from None
        finally:
            future.cancel()

    def iterate(self, stream: Callable[[], AsyncGenerator[T, None]]) -> Iterator[T]:
        """The items of a stream, as they come. It is opened by the first `next`, and closed when it has ended or the
        iterator is closed or forgotten."""
        items: SimpleQueue[tuple[T] | None] = SimpleQueue()
        room = asyncio.Semaphore(_AHEAD)
        pump = self._begun(_pumped(stream, items, room))
        pump.add_done_callback(lambda _: items.put(None))
        try:
            while (item := items.get()) is not None:
                yield item[0]
                self._soon(room.release)
            pump.result()
        except CancelledError:
            raise _closed() from None
        finally:
            # Not waited for: a forgotten iterator is closed in whatever thread forgot it, under whatever locks.
            pump.cancel()

    def stop(self) -> None:
        """Cancels what still runs, and lets the thread end. Safe where nothing may wait."""
        with self._lock:
            if not self._closed and self._loop is not None:
                self._soon(self._loop.stop)
            self._closed = True

    def close(self) -> None:
        """As `stop`, and waits for the end."""
        self.stop()
        if self._thread is not None and self._process == os.getpid():
            self._thread.join()

    def _begun(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            with self._lock:  # what is begun before the end is cancelled by it
                return asyncio.run_coroutine_threadsafe(coroutine, self._running())
        except RuntimeError:
            coroutine.close()
            raise

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise _closed()
        if self._loop is None:
            started: Future[asyncio.AbstractEventLoop] = Future()
            self._thread = threading.Thread(target=_run, args=[started], name="promptlooper-client", daemon=True)
            self._thread.start()
            self._loop, self._process = started.result(), os.getpid()
            # Not `atexit`: by then executors have ended, which the embedded Runner needs to close. Who registers last
            # is called first.
            importlib.import_module("concurrent.futures.thread")
            threading._register_atexit(_close, weakref.ref(self))  # type: ignore[attr-defined]
        elif self._process != os.getpid():
            raise RuntimeError("this client belongs to the process before the fork: make a new one in this process")
        return self._loop

    def _soon(self, callback: Callable[[], None]) -> None:
        if self._loop is not None and self._process == os.getpid():
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(callback)


def _close(forgotten: weakref.ref[LoopThread]) -> None:
    if (thread := forgotten()) is not None:
        thread.close()


def _closed() -> RuntimeError:
    return RuntimeError("this client is closed: make a new one")


def _run(started: Future[asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner() as runner:  # on leaving it cancels what runs, and waits for that
        loop = runner.get_loop()
        started.set_result(loop)
        loop.run_forever()


async def _pumped(
    stream: Callable[[], AsyncGenerator[T, None]], items: SimpleQueue[tuple[T] | None], room: asyncio.Semaphore
) -> None:
    """In one task from beginning to end, as streams want it that hold timeouts or tasks of their own."""
    async with aclosing(stream()) as opened:
        async for item in opened:
            await room.acquire()
            items.put((item,))
