"""A whole stack, started by the real command line, on free ports and with data of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

_KEYS = ("_API_KEY", "_TOKEN", "_BASE_URL")


@dataclass(frozen=True)
class CommandLine:
    """`promptlooper` as a user has it: a process of its own, in a folder of its own."""

    folder: Path
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PROMPTLOOPER_") and not name.endswith(_KEYS)
        }
        return inherited | self.extra

    @property
    def data(self) -> Path:
        return self.folder / ".promptlooper" / "up"

    def __call__(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*args), cwd=self.folder, env=self.env, capture_output=True, text=True, check=False, timeout=100
        )

    def popen(self, *args: str) -> subprocess.Popen[str]:
        """The process, with stdout and stderr in one pipe."""
        return subprocess.Popen(
            self.words(*args),
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def words(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "promptlooper.cli.main", *args]

    def status(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self("status", "--json").stdout)
        return rows

    def processes(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        state = json.loads((self.data / "up.json").read_text())
        supervisor = psutil.Process(state["supervisor"]["pid"])
        return [supervisor, *supervisor.children(recursive=True)]

    def living(self, processes: list[psutil.Process]) -> list[psutil.Process]:
        """Those that still run; a zombie is one that its parent has not asked about."""
        return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def server(self) -> str:
        return next(str(row["address"]) for row in self.status() if row["kind"] == "runner")
