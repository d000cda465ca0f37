"""The Adapter's core: finds the provider, keeps the deadline, retries, and names the price."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from difflib import get_close_matches

from promptlooper.adapter.config import NOT_YET
from promptlooper.adapter.counts import AdapterCounts
from promptlooper.adapter.genai import answered, asked, server
from promptlooper.adapter.limits import Limiter
from promptlooper.adapter.providers.provider import Problem, Provider
from promptlooper.adapter.retrying import AttemptFailed, Failure, decide, error_of
from promptlooper.clock import Clock, SystemClock
from promptlooper.completion import Completion, CompletionGateway, CompletionRequest, ModelCheck, ModelInfo, OnDelta
from promptlooper.errors import DeadlineExceeded, DomainError, ProviderCredentials, ProviderRejected, UnknownProvider
from promptlooper.tracing import span

_log = logging.getLogger(__name__)


class Gateway(CompletionGateway):
    """One face for all providers. Belongs to the event loop it is used in; `aclose` when nothing is asked any more."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        limiter: Limiter,
        *,
        clock: Clock | None = None,
        random: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._providers = dict(providers)
        self._limiter = limiter
        self._clock = clock or SystemClock()
        self._random = random
        self._sleep = sleep
        self.counts = AdapterCounts()

    async def complete(self, request: CompletionRequest, on_delta: OnDelta | None = None) -> Completion:
        provider, model, problem = self._route(request.model)
        if provider is None or problem is not None:
            assert problem is not None
            raise _error_of(problem, request.model)
        with span(f"chat {model}", "client") as completing:
            if completing:
                completing.set(asked(provider.name, model))
            try:
                completion = await self._completed(provider, model, request, on_delta)
            except DomainError as error:
                self.counts.completions[provider.name, error.reason] += 1
                raise
            if completing:
                completing.set(answered(completion))
        self.counts.completed(provider.name, model, completion)
        return completion

    async def _completed(
        self, provider: Provider, model: str, request: CompletionRequest, on_delta: OnDelta | None
    ) -> Completion:
        attempts = 0
        told = None if on_delta is None else _Told(on_delta)
        deadline = self._clock.monotonic() + request.timeout
        try:
            async with asyncio.timeout(request.timeout):
                while True:
                    async with self._limiter.slot(provider.name, model):
                        attempts += 1
                        try:
                            completion = await self._attempt(provider, model, request, told)
                            break
                        except AttemptFailed as error:
                            failure = error.failure
                    if told is not None and told.anything:  # the caller has a part of an answer: there is no second one
                        raise error_of(failure, attempts=attempts, provider=provider.name, model=model) from None
                    await self._before_next(failure, attempts, deadline, provider.name, model)
        except TimeoutError:
            raise DeadlineExceeded(
                f"provider {provider.name!r} did not answer within {request.timeout:g} s ({_requests(attempts)}); "
                f"allow more time, or ask fewer questions at once",
                attempts=attempts,
                provider=provider.name,
                model=model,
            ) from None
        if told is not None and not told.anything and completion.output:  # it can't stream, or refused
            told(completion.output)
        cost_nanousd = provider.prices.cost_nanousd(model, completion)
        return replace(completion, attempts=attempts, cost_nanousd=cost_nanousd)

    async def _attempt(
        self, provider: Provider, model: str, request: CompletionRequest, on_delta: OnDelta | None
    ) -> Completion:
        counts, began, outcome = self.counts, self._clock.monotonic(), "given_up"
        counts.in_flight[provider.name] += 1
        try:
            with span("attempt", "client") as attempting:
                if attempting:
                    attempting.set(server(provider.endpoint))
                try:
                    completion = await provider.complete(model, request, on_delta)
                except AttemptFailed as error:
                    outcome = error.reason
                    if attempting:
                        attempting.set({"http.response.status_code": error.failure.status})
                    raise
            outcome = "ok"
            return completion
        finally:
            counts.in_flight[provider.name] -= 1
            counts.attempted(provider.name, model, outcome, self._clock.monotonic() - began)

    async def _before_next(self, failure: Failure, attempts: int, deadline: float, provider: str, model: str) -> None:
        """Sleeps until the next attempt, or raises where there is none."""
        time_left = deadline - self._clock.monotonic()
        decision = decide(failure, attempts=attempts, time_left=time_left, random=self._random)
        if decision.sleep is None:
            raise error_of(
                failure, attempts=attempts, provider=provider, model=model, retry_after=decision.retry_after
            ) from None
        # Not the provider's message: it may quote the prompt.
        _log.info(
            "provider %s: attempt %d failed (%s, HTTP %s), again in %.2f s",
            *(provider, attempts, failure.kind.value, failure.status or "-", decision.sleep),
        )
        await self._sleep(decision.sleep)

    async def check_models(self, models: Sequence[str]) -> list[ModelCheck]:
        return [self._check(model) for model in models]

    def _check(self, name: str) -> ModelCheck:
        provider, model, problem = self._route(name)
        if provider is None or problem is not None:
            assert problem is not None
            return ModelCheck(name, problem.reason, problem.message)
        # An address may hold secrets: only its hash leaves this service.
        endpoint = hashlib.sha256(provider.endpoint.encode()).hexdigest()[:12]
        return ModelCheck(name, price=provider.prices.ceiling(model), endpoint=endpoint)

    async def list_models(self) -> list[ModelInfo]:
        """By provider, then model. `provider/*` stands for a provider whose models are not known by name."""
        infos = []
        for name, provider in sorted(self._providers.items()):
            for model in provider.models() or ["*"]:
                problem = provider.problem(model)
                infos.append(
                    ModelInfo(
                        model=f"{name}/{model}",
                        provider=name,
                        available=problem is None,
                        problem=None if problem is None else problem.message,
                        price=provider.prices.price(model),
                    )
                )
        return infos

    def _route(self, name: str) -> tuple[Provider | None, str, Problem | None]:
        """The provider and its own name of the model, or why there is none."""
        provider_name, slash, model = name.partition("/")
        provider = self._providers.get(provider_name)
        if provider is not None and model:
            return provider, model, provider.problem(model)
        known = ", ".join(sorted(self._providers))
        if not slash or not model:
            message = f"the model {name!r} names no provider; write it as PROVIDER/MODEL; providers are {known}"
            return None, model, Problem("INVALID_ARGUMENT", message)
        if provider_name in NOT_YET:
            message = (
                f"provider {provider_name!r} is not available yet; where it has an OpenAI-compatible address, put it "
                f"into the providers file (PROMPTLOOPER_PROVIDERS) with 'type: openai' and its 'base_url'"
            )
            return None, model, Problem("UNKNOWN_PROVIDER", message)
        near = get_close_matches(provider_name, self._providers, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {known}"
        message = (
            f"there is no provider {provider_name!r}; {hint}"
            f"{'' if near else ';'} others go into the providers file (PROMPTLOOPER_PROVIDERS)"
        )
        return None, model, Problem("UNKNOWN_PROVIDER", message)

    async def aclose(self) -> None:
        """Closes connections and ends the local model."""
        async with AsyncExitStack() as stack:
            for provider in self._providers.values():
                stack.push_async_callback(provider.aclose)


class _Told:
    """Passes pieces on, and knows whether there were any."""

    def __init__(self, on_delta: OnDelta) -> None:
        self._on_delta = on_delta
        self.anything = False

    def __call__(self, piece: str) -> None:
        self.anything = True
        self._on_delta(piece)


def _requests(attempts: int) -> str:
    return f"{attempts} request was made" if attempts == 1 else f"{attempts} requests were made"


def _error_of(problem: Problem, model: str) -> DomainError:
    provider = model.partition("/")[0]
    if problem.reason == "PROVIDER_CREDENTIALS":
        return ProviderCredentials(problem.message, provider=provider, model=model)
    if problem.reason == "UNKNOWN_PROVIDER":
        return UnknownProvider(problem.message, provider=provider, model=model)
    return ProviderRejected(problem.message, provider=provider, model=model)
