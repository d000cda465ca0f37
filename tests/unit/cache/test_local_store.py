"""What can go wrong with the file."""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
import zlib
from contextlib import closing
from pathlib import Path

import pytest

from promptlooper.cache.core import CacheCore
from promptlooper.cache.store import cachefile
from promptlooper.cache.store.local import LocalStore
from promptlooper.caching import CacheEntry, Lookup, LookupStatus
from promptlooper.errors import CacheUnavailable
from promptlooper.testing.clock import ManualClock


def key(number: int = 0) -> str:
    return f"default.default:{number:064x}"


async def statuses(cache: CacheCore, *numbers: int, claimant: str = "") -> list[LookupStatus]:
    return [found.status for found in await cache.lookup([Lookup(key(n)) for n in numbers], claimant)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.db"


def broken_files(path: Path) -> list[Path]:
    return list(path.parent.glob("cache.db.broken-*"))


def spoil(path: Path) -> None:
    path.write_bytes(b"this is not a database, and longer than its header would be" * 100)


def damage(path: Path) -> None:
    """Leaves the first page as it is, so that the file still looks like ours."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


def size_of(path: Path) -> int:
    return path.stat().st_size


async def filled(path: Path, count: int = 50) -> None:
    async with LocalStore(path) as store:
        await CacheCore(store).store([CacheEntry(key(n), os.urandom(1000)) for n in range(count)], "a")


async def test_file_of_version_0_1_0_is_used_as_it_is(path: Path) -> None:
    value = struct.pack(">4sQBHI", b"PLC1", 1_000_000, 0, len(key()), 1) + key().encode() + b"v"
    with closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE entries(key TEXT PRIMARY KEY, data BLOB NOT NULL, used_at REAL NOT NULL)")
        file.execute("CREATE INDEX entries_used_at ON entries(used_at)")
        file.execute(
            "CREATE TABLE leases(key TEXT PRIMARY KEY, claimant TEXT NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID"
        )
        data = value + struct.pack(">I", zlib.crc32(value))
        file.execute("INSERT INTO entries VALUES(?1, ?2, ?3)", (key(), data, 1.0))
        file.execute("PRAGMA user_version = 1")
        file.commit()
    async with LocalStore(path) as store:
        cache = CacheCore(store)
        assert await statuses(cache, 0) == [LookupStatus.HIT]
        await cache.store([CacheEntry(key(1), b"v")], "a")
        await cache.purge("", "a/m")
        assert await statuses(cache, 0, 1) == [LookupStatus.MISS] * 2  # of which model they are is not known
        assert (await cache.stats()).entries == 2
    with closing(sqlite3.connect(path)) as file:  # and 0.1.0 writes into it
        file.execute("INSERT INTO entries VALUES(?1, ?2, ?3)", (key(2), data, 1.0))
    assert not broken_files(path)


async def test_values_outlive_the_process(path: Path) -> None:
    await filled(path)
    async with LocalStore(path) as store:
        assert await statuses(CacheCore(store), 0, 49, 50) == [LookupStatus.HIT, LookupStatus.HIT, LookupStatus.MISS]


async def test_file_that_is_none_of_ours_is_put_aside_and_begun_anew(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(path)
    async with LocalStore(path) as store:
        assert await statuses(CacheCore(store), 0, claimant="a") == [LookupStatus.LEAD]
    [aside] = broken_files(path)
    assert aside.read_bytes().startswith(b"this is not a database")
    assert "a new one is begun" in caplog.text


async def test_damaged_file_is_put_aside_when_the_damage_is_met(path: Path) -> None:
    await filled(path, 200)
    damage(path)
    async with LocalStore(path) as store:
        cache = CacheCore(store)
        assert await statuses(cache, 0, claimant="a") == [LookupStatus.LEAD]
        await cache.store([CacheEntry(key(0), b"v")], "a")
        assert await statuses(cache, 0) == [LookupStatus.HIT]
    assert len(broken_files(path)) == 1


async def test_file_of_another_version_is_put_aside(path: Path) -> None:
    await filled(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    async with LocalStore(path) as store:
        assert await statuses(CacheCore(store), 0) == [LookupStatus.MISS]
    assert len(broken_files(path)) == 1


async def test_folder_that_cannot_be_made_is_unavailable_and_said_once(
    tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    async with LocalStore(tmp_path / "file" / "cache.db", clock=clock) as store:
        cache = CacheCore(store)
        with pytest.raises(CacheUnavailable, match="cannot use its file"):
            await statuses(cache, 0)
        with pytest.raises(CacheUnavailable, match="a moment ago"):
            await statuses(cache, 0)
        (tmp_path / "file").unlink()
        clock.advance(1.0)
        assert await statuses(cache, 0) == [LookupStatus.MISS]
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1


async def test_file_that_another_holds_too_long_is_unavailable(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cachefile, "_BUSY", 0.01)
    await filled(path)
    async with LocalStore(path, clock=clock) as store:
        cache = CacheCore(store)
        assert await statuses(cache, 0) == [LookupStatus.HIT]
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CacheUnavailable, match="locked"):
            await statuses(cache, 0)
        other.execute("ROLLBACK")
        other.close()
        clock.advance(1.0)
        assert await statuses(cache, 0) == [LookupStatus.HIT]


async def test_file_that_was_deleted_under_us_is_begun_anew(path: Path, clock: ManualClock) -> None:
    async with LocalStore(path, clock=clock) as store:
        cache = CacheCore(store)
        await cache.store([CacheEntry(key(0), b"v")], "a")
        for part in path.parent.iterdir():
            part.unlink()
        # SQLite may notice at once or go on with the deleted file; neither may raise anything else, or hang.
        try:
            await cache.store([CacheEntry(key(1), b"v")], "a")
        except CacheUnavailable:
            clock.advance(1.0)
            await cache.store([CacheEntry(key(1), b"v")], "a")
        assert await statuses(cache, 1) == [LookupStatus.HIT]


async def test_over_its_bound_the_longest_unused_entries_go(path: Path, clock: ManualClock) -> None:
    async with LocalStore(path, max_bytes=4_000_000, clock=clock) as store:
        cache = CacheCore(store, clock=clock)
        for n in range(900):
            await cache.store([CacheEntry(key(n), os.urandom(2000))], "a")
            clock.advance(1)
        clock.advance(2 * 86400)  # a use is noted once a day
        await statuses(cache, 100)
        for n in range(900, 1500):
            await cache.store([CacheEntry(key(n), os.urandom(2000))], "a")
        stats = await cache.stats()
        assert stats.bytes <= 4_000_000
        assert 500 < stats.entries < 1500
        assert await statuses(cache, 0, 100, 1499) == [LookupStatus.MISS, LookupStatus.HIT, LookupStatus.HIT]


async def test_purge_gives_the_disk_back(path: Path) -> None:
    await filled(path, 2000)
    full = size_of(path)
    async with LocalStore(path) as store:
        assert await CacheCore(store).purge("") == 2000
    assert size_of(path) < full / 10


async def test_store_that_was_never_used_makes_no_file(path: Path) -> None:
    async with LocalStore(path):
        pass
    assert not list(path.parent.iterdir())


async def test_fault_in_a_job_leaves_the_thread_alive(path: Path, clock: ManualClock) -> None:
    async with LocalStore(path, clock=clock) as store:
        with pytest.raises(CacheUnavailable, match="AttributeError"):
            await store.claim([None], "a", 1.0)  # type: ignore[list-item]
        clock.advance(1.0)
        await store.store([(key(0), b"v")], "a")
        assert (await store.size())[0] == 1
