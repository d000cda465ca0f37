"""Providers that speak the OpenAI chat completions format: OpenAI, vLLM, llama.cpp, Ollama and their like."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

import aiohttp
import httpx

from promptlooper.adapter.cost import Prices
from promptlooper.adapter.providers.openai_format import completion_of, error_in, failure_of, request_body
from promptlooper.adapter.providers.provider import Problem
from promptlooper.adapter.providers.transport import LARGEST_BODY, BodyTooLarge, Transport
from promptlooper.adapter.redaction import Redactor
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind
from promptlooper.clock import Clock
from promptlooper.completion import Completion, CompletionRequest

PUBLIC_URL = "https://api.openai.com/v1"


def is_public_openai(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    return host == "api.openai.com" or host.endswith(".api.openai.com")


class OpenAIProvider:
    """One base URL with one key. `problem` is what its settings lack, known before anything is asked."""

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        prices: Prices,
        clock: Clock,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        problem: Problem | None = None,
    ) -> None:
        self.name = name
        self.prices = prices
        self.endpoint = base_url
        self._clock = clock
        self._problem = problem
        self._public_openai = is_public_openai(base_url)
        own = dict(headers or {})
        self._redacted = Redactor([*([api_key] if api_key else []), *own.values()])
        sent = {"content-type": "application/json", "user-agent": "promptlooper", **own}
        if api_key:
            sent["authorization"] = f"Bearer {api_key}"
        self._transport = Transport(base_url, sent)

    def problem(self, model: str) -> Problem | None:
        return self._problem

    def models(self) -> list[str]:
        return self.prices.known_models()

    async def complete(self, model: str, request: CompletionRequest) -> Completion:
        body = request_body(model, request, public_openai=self._public_openai)
        started = self._clock.monotonic()
        status, headers, answer = await self._post("/chat/completions", body)
        latency_ms = round((self._clock.monotonic() - started) * 1000)
        if status == 200:
            try:
                return completion_of(answer, model, latency_ms)
            except AttemptFailed as error:
                if headers.get("content-encoding", "identity") != "identity":
                    message = "it is compressed, though identity was asked for"
                    raise AttemptFailed(Failure(Kind.MALFORMED, message, status)) from error
                if (hidden := error_in(answer)) is None:
                    raise
                status = hidden
        failure = failure_of(status, headers, answer, now=self._clock.now(), redacted=self._redacted)
        if failure.kind is Kind.CONTENT_FILTERED:
            return Completion(output="", model=model, finish_reason="content_filter", latency_ms=latency_ms)
        raise AttemptFailed(failure)

    async def _post(self, path: str, body: bytes) -> tuple[int, httpx.Headers, bytes]:
        try:
            return await self._transport.request("POST", path, body)
        except BodyTooLarge:
            message = f"the answer is larger than {LARGEST_BODY >> 20} MiB"
            raise AttemptFailed(Failure(Kind.PERMANENT, message)) from None
        except httpx.TransportError as error:
            # httpx-aiohttp calls most things ConnectTimeout; the cause knows better.
            cause = error.__cause__
            said = self._redacted(_reason(cause or error)) or type(error).__name__
            if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
                message = f"cannot connect to {self.endpoint} ({said}); check that it runs there"
            else:
                message = f"the connection to {self.endpoint} broke ({said})"
            raise AttemptFailed(Failure(Kind.TRANSIENT, message)) from error
        except aiohttp.ClientResponseError as error:
            message = f"what came from {self.endpoint} is not HTTP ({self._redacted(error.message)})"
            raise AttemptFailed(Failure(Kind.MALFORMED, message)) from None  # its repr shows our headers
        except aiohttp.ClientError as error:
            message = f"the request to {self.endpoint} failed ({type(error).__name__})"
            raise AttemptFailed(Failure(Kind.TRANSIENT, message)) from error

    async def aclose(self) -> None:
        await self._transport.aclose()


def _reason(error: BaseException) -> str:
    """The system's words where there are some: the library's repeat the address."""
    system = getattr(error, "os_error", None)
    return os.strerror(system.errno) if type(system) is ConnectionRefusedError and system.errno else str(error)
