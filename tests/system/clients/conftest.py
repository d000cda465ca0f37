"""The example clients, built as their READMEs say, and a stack whose model answers when the test lets it."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from stack_lab import CommandLine

from promptlooper.testing.provider import FakeProvider, ProviderRequest

EXAMPLES = Path(__file__).parents[3] / "examples"
CLIENTS = EXAMPLES / "clients"
TOOLS = {
    "node": ("node", "npm"),
    "go": ("go", "protoc-gen-go", "protoc-gen-go-grpc"),
    "cpp": ("g++", "make", "pkg-config", "protoc", "grpc_cpp_plugin", "ccache"),
}
PROGRAMS = {
    "node": ("node", str(CLIENTS / "node/dist/src/main.js")),
    "go": (str(CLIENTS / "go/promptlooper-client"),),
    "cpp": (str(CLIENTS / "cpp/promptlooper-client"),),
}


def readme_commands(folder: Path) -> str:
    """The commands that build an example: the blocks ```sh build of its README."""
    blocks = re.findall(r"^```sh build\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks, f"{folder}/README.md has no block that builds it"
    return "\n".join(blocks)


def built(folder: Path, *tools: str) -> None:
    """Builds an example in its own folder, in which a build of before is gone on with."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.fail(
            f"missing: {', '.join(missing)}; `sh examples/clients/toolchains.sh` as root installs it", pytrace=False
        )
    scripts = sysconfig.get_path("scripts")
    quick = {
        "CXX": "ccache g++",
        "CXXFLAGS": "-O0",
        "CCACHE_SLOPPINESS": "include_file_mtime,include_file_ctime",  # the stubs are as old as this build
        "MAKEFLAGS": "-j2",
        "GOPROXY": "off",
    }
    done = subprocess.run(
        ["bash", "-e", "-c", readme_commands(folder)],
        cwd=folder,
        env={**os.environ, **quick, "PATH": f"{scripts}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def program() -> Callable[[str], tuple[str, ...]]:
    """The words that start a client; it is built when it is first asked for."""

    @functools.cache
    def started_by(language: str) -> tuple[str, ...]:
        built(CLIENTS / language, *TOOLS[language])
        return PROGRAMS[language]

    return started_by


@dataclass
class GatedStack:
    """A stack, and the gate of its model: each `release()` lets one more question through."""

    promptlooper: CommandLine
    gate: asyncio.Semaphore
    server: str = ""

    @property
    def port(self) -> int:
        return int(self.server.rpartition(":")[2])

    def release(self, questions: int) -> None:
        for _ in range(questions):
            self.gate.release()

    async def nats_url(self) -> str:
        rows = await asyncio.to_thread(self.promptlooper.status)
        return next(f"nats://{row['address']}" for row in rows if row["kind"] == "nats")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack() -> AsyncIterator[GatedStack]:
    """A stack that is up and healthy, shared by tests that do it no harm. `openai/any` echoes."""
    gate = asyncio.Semaphore(0)

    async def echo(request: ProviderRequest) -> str:
        await gate.acquire()
        return request.question

    folder = Path(tempfile.mkdtemp(prefix="promptlooper-clients-"))
    async with FakeProvider(echo) as provider:
        promptlooper = CommandLine(folder, {"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "sk-test"})
        try:
            started = await asyncio.to_thread(promptlooper, "up", "-d", "--port-base", "0")
            assert started.returncode == 0, started.stderr
            yield GatedStack(promptlooper, gate, await asyncio.to_thread(promptlooper.server))
        finally:
            await asyncio.to_thread(promptlooper, "down")
            shutil.rmtree(folder)


@pytest.fixture(scope="session")
def subscriber_in_node() -> Callable[[], Path]:
    """The subscriber in JavaScript, with its packages once it is asked for."""
    folder = EXAMPLES / "subscribers" / "node"

    @functools.cache
    def counter() -> Path:
        built(folder, "node", "npm")
        return folder / "counter.mjs"

    return counter
