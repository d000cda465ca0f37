"""The local file of values and leases. Blocking calls, for one thread; other processes may have the same file open."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from promptlooper.cache.purges import NUMBER, Purge
from promptlooper.cache.store.contract import Claim, Claims, Lease, Wanted

log = logging.getLogger(__name__)

_VERSION = 1  # of the tables, kept as user_version
_BUSY = 1.0  # seconds to wait for another process that is writing
_USED_STEP = 86400.0  # seconds: `used_at` is written at most once a day, so that a hit is seldom a write
_SHRINK_TO = 0.98  # of the bound: what makes room once is not asked again at once
_EVICTED_AT_ONCE = 200
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

_TABLES = (
    "CREATE TABLE entries(key TEXT PRIMARY KEY, data BLOB NOT NULL, used_at REAL NOT NULL)",
    "CREATE INDEX entries_used_at ON entries(used_at)",
    "CREATE TABLE leases(key TEXT PRIMARY KEY, claimant TEXT NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID",
    f"PRAGMA user_version = {_VERSION}",
)
_LATER = (  # what files of the same version may lack
    "CREATE TABLE IF NOT EXISTS tallies(kind TEXT, name TEXT, number INTEGER, PRIMARY KEY(kind, name)) WITHOUT ROWID",
)
_PURGES, _COUNTS = "purge", "count"  # kinds of tallies
_FIND = "SELECT CAST(data AS BLOB), used_at FROM entries WHERE key = ?"
_USE = "UPDATE entries SET used_at = ? WHERE key = ?"
_PUT = "INSERT INTO entries VALUES(?1, ?2, ?3) ON CONFLICT(key) DO UPDATE SET data = ?2, used_at = ?3"
_TAKE = (
    "INSERT INTO leases VALUES(?1, ?2, ?3) ON CONFLICT(key) DO UPDATE SET claimant = ?2, expires_at = ?3 "
    "WHERE claimant = ?2 OR expires_at <= ?4 RETURNING 1"
)
_RENEW = "UPDATE leases SET expires_at = ?3 WHERE key = ?1 AND claimant = ?2 AND expires_at > ?4"
_RELEASE = "DELETE FROM leases WHERE key = ? AND claimant = ?"
_ADD = (
    "INSERT INTO tallies VALUES(?1, ?2, ?3) ON CONFLICT(kind, name) DO UPDATE SET number = number + ?3 RETURNING number"
)
_OF_SCOPE = "DELETE FROM entries WHERE key >= ? AND key < ?"
_OF_NAMESPACE = "DELETE FROM entries WHERE substr(key, instr(key, '.') + 1, length(?1)) = ?1"
_EVICT = "DELETE FROM entries WHERE key IN (SELECT key FROM entries ORDER BY used_at LIMIT ?)"


class BrokenFile(Exception):
    """What is there cannot be read as a cache of this version."""


class CacheFile:
    """An open file. Times are seconds since the epoch. Every method raises sqlite3.Error."""

    def __init__(self, path: Path, max_bytes: int, now: float) -> None:
        """Opens the file, or makes it. One that is broken is put aside and made anew."""
        self._path = path
        self._max_bytes = max_bytes
        self._purged = False  # what was deleted is not given back to the disk yet
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():  # switching a new file to WAL does not wait for others
            try:
                self._connection = self._opened(now)
            except (sqlite3.DatabaseError, BrokenFile) as error:
                if not is_broken(error):
                    raise
                self._put_aside(error)
                self._connection = self._opened(now)
            self._inode = path.stat().st_ino

    def close(self) -> None:
        self._connection.close()

    def close_broken(self, error: Exception) -> None:
        """Closes the file and puts it aside, where another process has not done so already."""
        self._connection.close()
        with self._alone():
            if self._path.exists() and self._path.stat().st_ino == self._inode:
                self._put_aside(error)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")  # a transaction that begins by reading is refused, not queued
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
        if self._purged:
            # As a script: `execute` would stop after the first page. It cannot run inside the transaction.
            self._connection.executescript("PRAGMA incremental_vacuum")
            self._purged = False

    def claim(self, wanted: Sequence[Wanted], claimant_id: str, now: float, lease_ttl: float) -> Claims:
        return [self._claimed(one, claimant_id, now, lease_ttl) for one in wanted], self._purge_number()

    def renew(self, keys: Sequence[str], claimant_id: str, now: float, lease_ttl: float) -> list[bool]:
        execute = self._connection.execute
        return [execute(_RENEW, (key, claimant_id, now + lease_ttl, now)).rowcount > 0 for key in keys]

    def store(self, entries: Sequence[tuple[str, bytes]], claimant_id: str, now: float) -> int:
        self._connection.executemany(_PUT, [(key, data, now) for key, data in entries])
        if claimant_id:
            self.release([key for key, _ in entries], claimant_id)
        self._make_room()
        return self._purge_number()

    def release(self, keys: Sequence[str], claimant_id: str) -> None:
        self._connection.executemany(_RELEASE, [(key, claimant_id) for key in keys])

    def purge(self, purge: Purge) -> int:
        execute = self._connection.execute
        number = execute(_ADD, (_PURGES, NUMBER, 1)).fetchone()[0]
        if purge == Purge():
            execute("DELETE FROM tallies WHERE kind = ? AND name <> ?", (_PURGES, NUMBER))
        execute(_ADD, (_PURGES, purge.pattern, number if purge == Purge() else 1)).fetchone()
        if purge.model:  # their values are not told by their keys: they go when room is needed
            return 0
        self._purged = True
        if purge == Purge():
            return execute("DELETE FROM entries").rowcount
        if not purge.project:
            return execute(_OF_NAMESPACE, (f"{purge.namespace}:",)).rowcount
        scope = f"{purge.project}.{purge.namespace}" + (":" if purge.namespace else "")
        return execute(_OF_SCOPE, (scope, scope[:-1] + chr(ord(scope[-1]) + 1))).rowcount

    def purges(self) -> Mapping[str, int]:
        return self._tallies(_PURGES)

    def add(self, counts: Mapping[str, int], now: int) -> None:
        self._connection.execute("INSERT OR IGNORE INTO tallies VALUES(?, 'since', ?)", (_COUNTS, now))
        for name, number in counts.items():
            self._connection.execute(_ADD, (_COUNTS, name, number)).fetchone()

    def counts(self) -> Mapping[str, int]:
        return self._tallies(_COUNTS)

    def size(self) -> tuple[int, int]:
        """Entries, and the bytes in use."""
        return self._number("SELECT count(*) FROM entries"), self._used_bytes()

    def _claimed(self, wanted: Wanted, claimant_id: str, now: float, lease_ttl: float) -> Claim:
        row = self._connection.execute(_FIND, (wanted.key,)).fetchone()
        if row is not None:
            data: bytes = row[0]
            if wanted.seen is None or not data.startswith(wanted.seen):
                if now - row[1] > _USED_STEP:
                    self._connection.execute(_USE, (now, wanted.key))
                return data
        if not claimant_id:
            return Lease.NOT_ASKED
        taken = self._connection.execute(_TAKE, (wanted.key, claimant_id, now + lease_ttl, now)).fetchone()
        return Lease.HELD if taken else Lease.TAKEN

    def _make_room(self) -> None:
        if self._used_bytes() <= self._max_bytes:
            return
        while self._used_bytes() > self._max_bytes * _SHRINK_TO:
            if not self._connection.execute(_EVICT, (_EVICTED_AT_ONCE,)).rowcount:
                return

    def _tallies(self, kind: str) -> Mapping[str, int]:
        return dict(self._connection.execute("SELECT name, number FROM tallies WHERE kind = ?", (kind,)).fetchall())

    def _purge_number(self) -> int:
        return self._number(f"SELECT total(number) FROM tallies WHERE kind = '{_PURGES}' AND name = '{NUMBER}'")

    def _used_bytes(self) -> int:
        pages = self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")
        return pages * self._number("PRAGMA page_size")

    def _number(self, sql: str) -> int:
        return int(self._connection.execute(sql).fetchone()[0])

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process opens the file or puts it aside meanwhile."""
        with open(f"{self._path}.lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _opened(self, now: float) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_BUSY, isolation_level=None)
        try:
            for pragma in (
                "auto_vacuum = INCREMENTAL",
                "journal_mode = WAL",
                "synchronous = NORMAL",
                "trusted_schema = OFF",
            ):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if not version and not tables:
                for statement in ("BEGIN IMMEDIATE", *_TABLES, "COMMIT"):
                    connection.execute(statement)
            elif version != _VERSION:
                raise BrokenFile(f"it is of version {version}, and this program knows version {_VERSION}")
            for statement in _LATER:
                connection.execute(statement)
            connection.execute("DELETE FROM leases WHERE expires_at <= ?", (now,))
        except BaseException:
            connection.close()
            raise
        return connection

    def _put_aside(self, error: Exception) -> None:
        aside = f"{self._path}.broken-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
        for ending in ("", "-wal", "-shm"):
            part = Path(f"{self._path}{ending}")
            if part.exists():
                part.rename(aside + ending)
        log.warning(
            "the cache file %s cannot be read (%s): it is now %s, and a new one is begun", self._path, error, aside
        )


def is_broken(error: Exception) -> bool:
    """Whether the file, not its surroundings, is the trouble."""
    return isinstance(error, BrokenFile) or (
        isinstance(error, sqlite3.DatabaseError) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _BROKEN
    )
