"""A server as a child process: started, asked whether it answers, stopped, killed, started again."""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from promptlooper.backing.programs import BackingUnavailable

HOST = "127.0.0.1"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class Server(ABC):
    """A child process that serves a port of 127.0.0.1. It keeps port and data folder when it is started again."""

    name: str
    stop_signal = signal.SIGTERM

    def __init__(self, data: Path, port: int = 0) -> None:
        self.data = data
        self.port = port or free_port()
        self.log = data / f"{self.name}.log"
        self.user: pwd.struct_passwd | None = None  # whom it runs as; None is whom we run as
        self.process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str: ...

    def start(self, within: float = 30.0) -> None:
        """Launches it and waits until it answers. Raises BackingUnavailable with the end of its log if it does not."""
        self.launch()
        until = time.monotonic() + within
        while not self.is_ready():
            if self.process is None or self.process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise BackingUnavailable(f"{self.name} did not start on port {self.port}: {self._last_words()}")
            time.sleep(0.01)

    def launch(self) -> None:
        """Starts the process and returns. Raises BackingUnavailable where something else has its port."""
        if self.process is not None and self.process.poll() is None:
            raise BackingUnavailable(f"{self.name} is running already, as process {self.process.pid}")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, self.port))
            except OSError as error:
                reason = f"{HOST}:{self.port} is not free for {self.name} ({error.strerror}): stop what listens there"
                raise BackingUnavailable(reason) from None
        self.process = self._spawned(self.command())

    def command(self) -> Sequence[str | Path]:
        """The command line, for who starts it in a way of their own; makes the data folder and its configuration."""
        self.data.mkdir(parents=True, exist_ok=True)
        return self._command()

    def is_ready(self) -> bool:
        """Whether this very process answers in its own protocol now."""
        if self.process is None or self.process.poll() is not None:
            return False
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                return self._answers(connection, self.process.pid)
        except OSError:
            return False

    def stop(self, within: float = 10.0) -> None:
        """Ends it in good order, and by force after `within` seconds."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
            try:
                self.process.wait(within)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process = None

    def kill(self) -> None:
        """Ends it at once, as a crash would."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
        self.process = None

    @abstractmethod
    def _command(self) -> Sequence[str | Path]: ...

    @abstractmethod
    def _answers(self, connection: socket.socket, pid: int) -> bool: ...

    def _spawned(self, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        user = self.user
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.data,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal is for us; we stop them in order
                preexec_fn=dies_with_parent(self.stop_signal),
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
            )

    def _last_words(self) -> str:
        text = self.log.read_text(errors="replace").strip() if self.log.exists() else ""
        return " / ".join(text.splitlines()[-5:]) or "it said nothing"


def dies_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """A `preexec_fn`: the child gets `number` when the thread that started it ends.

    prctl is found here, before the fork, since after it little is safe.
    """
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask_for_signal() -> None:
        prctl(1, int(number))  # PR_SET_PDEATHSIG; it is lost by setuid, which is done by now
        if os.getppid() != parent:  # already gone: nobody will be told
            os._exit(1)

    return ask_for_signal
