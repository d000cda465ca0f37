"""The command line as processes of their own, against a provider that the test holds."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Shell:
    """Starts commands in a folder, without the variables of whoever runs the tests."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    started: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(self, *args: str) -> asyncio.subprocess.Process:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PROMPTLOOPER_", "OPENAI_"))}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "promptlooper.cli.main", *args),
            cwd=self.folder,
            env={**kept, **self.env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self.started.append(process)
        return process

    async def __call__(self, *args: str) -> Ended:
        return await end_of(await self.start(*args))


async def end_of(process: asyncio.subprocess.Process) -> Ended:
    out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    for process in shell.started:
        if process.returncode is None:
            process.kill()
