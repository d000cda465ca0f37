"""Values and leases in a local file, for one machine: several processes may use it at once."""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from promptlooper.breaker import Breaker, BreakerState
from promptlooper.cache.purges import Purge
from promptlooper.cache.store.cachefile import BrokenFile, CacheFile, is_broken
from promptlooper.cache.store.contract import Claims, Wanted
from promptlooper.clock import Clock, SystemClock
from promptlooper.errors import CacheUnavailable

log = logging.getLogger(__name__)
T = TypeVar("T")

GIB = 1024**3
_MOST_JOBS = 200  # in one commit


@dataclass(frozen=True, slots=True)
class _Job:
    work: Callable[[CacheFile], Any]
    done: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str


class LocalStore:
    """An async context manager. One thread owns the file, and commits together what was asked meanwhile.

    The file is opened by the first call. Over `max_bytes` the entries that were unused for longest go.
    """

    backend = "file"

    def __init__(self, path: Path, *, max_bytes: int = GIB, clock: Clock | None = None) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._clock = clock or SystemClock()
        self._breaker = Breaker(self._clock)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._file: CacheFile | None = None  # the thread's

    @property
    def breaker(self) -> BreakerState:
        return self._breaker.state

    async def __aenter__(self) -> LocalStore:
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._thread = threading.Thread(target=self._serve, name="cache-file", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._jobs.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()

    async def claim(self, wanted: Sequence[Wanted], claimant_id: str, lease_ttl: float) -> Claims:
        return await self._run(lambda file: file.claim(wanted, claimant_id, self._now(), lease_ttl))

    async def renew(self, keys: Sequence[str], claimant_id: str, lease_ttl: float) -> list[bool]:
        return await self._run(lambda file: file.renew(keys, claimant_id, self._now(), lease_ttl))

    async def store(self, entries: Sequence[tuple[str, bytes]], claimant_id: str) -> int:
        return await self._run(lambda file: file.store(entries, claimant_id, self._now()))

    async def release(self, keys: Sequence[str], claimant_id: str) -> None:
        await self._run(lambda file: file.release(keys, claimant_id))

    async def purge(self, purge: Purge) -> int:
        return await self._run(lambda file: file.purge(purge))

    async def purges(self) -> Mapping[str, int]:
        return await self._run(lambda file: file.purges())

    async def add(self, counts: Mapping[str, int], now: int) -> None:
        await self._run(lambda file: file.add(counts, now))

    async def counts(self) -> Mapping[str, int]:
        return await self._run(lambda file: file.counts())

    async def size(self) -> tuple[int, int]:
        return await self._run(lambda file: file.size())

    async def _run(self, work: Callable[[CacheFile], T]) -> T:
        if not self._breaker.admits():
            raise self._unavailable("it could not be used a moment ago")
        job = _Job(work, self._loop.create_future())
        self._jobs.put(job)
        result: T = await job.done
        return result

    def _now(self) -> float:
        return self._clock.now().timestamp()

    def _unavailable(self, reason: str) -> CacheUnavailable:
        return CacheUnavailable(f"the cache cannot use its file {str(self._path)!r}: {reason}")

    def _settle(self, jobs: list[_Job], results: list[Any] | _Failure) -> None:
        if not isinstance(results, _Failure):
            self._breaker.succeeded()
        elif self._breaker.failed():
            log.warning("the cache is off while its file %s cannot be used: %s", self._path, results.reason)
        for index, job in enumerate(jobs):
            if job.done.done():  # its caller was cancelled
                continue
            if isinstance(results, _Failure):
                job.done.set_exception(self._unavailable(results.reason))
            else:
                job.done.set_result(results[index])

    # Below: in the thread.

    def _serve(self) -> None:
        go_on = True
        while go_on:
            jobs: list[_Job] = []
            while go_on and len(jobs) < _MOST_JOBS:
                try:
                    job = self._jobs.get(block=not jobs)
                except queue.Empty:
                    break
                if job is None:
                    go_on = False
                else:
                    jobs.append(job)
            if jobs:
                self._tell(self._settle, jobs, self._committed(jobs))
        if self._file is not None:
            self._file.close()
        self._tell(self._ended.set_result, None)

    def _tell(self, what: Callable[..., object], *facts: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *facts)
        except RuntimeError:  # the loop was closed without leaving us first: nobody waits any more
            log.debug("the event loop of %s is closed", self._path)

    def _committed(self, jobs: list[_Job]) -> list[Any] | _Failure:
        try:
            try:
                return self._tried(jobs)
            except sqlite3.DatabaseError as error:
                if self._file is None or not is_broken(error):
                    raise
                self._file.close_broken(error)
                self._file = None
                return self._tried(jobs)
        except (sqlite3.Error, OSError, BrokenFile) as error:
            self._drop_file()
            return _Failure(str(error))
        except Exception as error:  # a fault of ours: the thread must live, or every later call would wait for ever
            log.exception("the cache's thread failed")
            self._drop_file()
            return _Failure(f"{type(error).__name__}: {error}")

    def _tried(self, jobs: list[_Job]) -> list[Any]:
        if self._file is None:
            self._file = CacheFile(self._path, self._max_bytes, self._now())
        with self._file.transaction():
            return [job.work(self._file) for job in jobs]

    def _drop_file(self) -> None:
        """So that the next call opens it anew: it may have been moved or its disk be back."""
        if self._file is not None:
            self._file.close()
            self._file = None
