"""The Adapter's core: keeps the deadline, tries one route after the other, and names the price."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TypeVar

from promptlooper.adapter.batch.core import Batches
from promptlooper.adapter.cost import checked
from promptlooper.adapter.counts import AdapterCounts
from promptlooper.adapter.embedding import as_billed, in_parts
from promptlooper.adapter.genai import answered, asked, embedded, server
from promptlooper.adapter.heard import Heard, streams, timed
from promptlooper.adapter.limits.limiter import Held, Limiter, Permit
from promptlooper.adapter.providers.provider import Problem, error_of_problem
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind, error_of
from promptlooper.adapter.routes.route import Route
from promptlooper.adapter.routes.router import Router
from promptlooper.adapter.routes.way import Way
from promptlooper.batches import BatchGateway, BatchItem, BatchResult, BatchStatus, SubmittedBatch
from promptlooper.clock import Clock, SystemClock
from promptlooper.completion import (
    Completion,
    CompletionGateway,
    CompletionRequest,
    LimitState,
    ModelCheck,
    ModelInfo,
    OnDelta,
    fault_of,
)
from promptlooper.embeddings import EmbeddingGateway, EmbeddingRequest, Embeddings, check_embedding_request
from promptlooper.errors import DeadlineExceeded, DomainError, InvalidArgument
from promptlooper.tracing import span

AnswerT = TypeVar("AnswerT", Completion, Embeddings)

_log = logging.getLogger(__name__)


class Gateway(CompletionGateway, EmbeddingGateway, BatchGateway):
    """One face for all providers. Belongs to the event loop it is used in; `aclose` when nothing is asked any more."""

    def __init__(
        self,
        router: Router,
        limiter: Limiter,
        *,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._router = router
        self.limiter = limiter
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self.counts = AdapterCounts(resting=router.health.resting)
        self._batches = Batches(router, self.counts, clock=self._clock, sleep=sleep)

    async def complete(self, request: CompletionRequest, on_delta: OnDelta | None = None) -> Completion:
        if fault := fault_of(request):
            raise InvalidArgument(fault, field=fault.partition(":")[0])
        way = self._router.way(request.model)
        if isinstance(way, Problem):
            raise error_of_problem(way, request.model)
        provider, _, model = request.model.partition("/")
        with span(f"chat {model}", "client") as completing:
            if completing:
                completing.set(asked(provider, model))
            try:
                completion = await self._completed(way, request, on_delta)
            except DomainError as error:
                self.counts.completions[provider, error.reason] += 1
                raise
            finally:
                way.leave()
            if completing:
                completing.set(answered(completion))
        self.counts.completed(way.route.provider.name, way.route.model, completion)
        return completion

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        check_embedding_request(request)
        at_once = min(route.provider.embeds for route in self._embedding_routes(request.model))
        provider, _, model = request.model.partition("/")
        with span(f"embeddings {model}", "client") as embedding:
            if embedding:
                embedding.set(asked(provider, model, "embeddings"))
            try:
                embeddings = await in_parts(request, at_once, self._embedded, self._clock)
            except DomainError as error:
                self.counts.embeddings[provider, error.reason] += 1
                raise
            if embedding:
                embedding.set(embedded(embeddings))
        self.counts.embeddings[provider, "ok"] += 1
        return embeddings

    def _embedding_routes(self, model: str) -> list[Route]:
        routes = self._router.embedding_routes(model)
        if isinstance(routes, Problem):
            raise error_of_problem(routes, model)
        return routes

    async def _embedded(self, request: EmbeddingRequest) -> Embeddings:
        """What one request of the provider takes."""
        way = self._router.embedding_way(self._embedding_routes(request.model))
        try:
            embeddings, attempts = await self._answered(way, request, partial(self._embed, request))
        finally:
            way.leave()
        route = way.route
        cost = route.provider.prices.cost(route.model, as_billed(embeddings))
        embeddings = replace(embeddings, attempts=attempts, cost_nanousd=cost.nanousd, price_version=cost.version)
        self.counts.embedded(route.provider.name, route.model, embeddings)
        return embeddings

    async def _embed(self, request: EmbeddingRequest, route: Route) -> Embeddings:
        """One attempt."""
        with self._counted(route):
            async with timed(route.upstream.timeouts, request.timeout, None):
                return await route.provider.embed(route.model, request)

    async def _completed(self, way: Way, request: CompletionRequest, on_delta: OnDelta | None) -> Completion:
        completion, attempts = await self._answered(way, request, partial(self._complete, request, on_delta))
        route = way.route
        cost = route.provider.prices.cost(route.model, completion)
        return replace(
            completion,
            model=route.name if way.is_fallback else completion.model,
            fallback=way.is_fallback,
            attempts=attempts,
            cost_nanousd=cost.nanousd,
            price_version=cost.version,
        )

    async def _answered(
        self, way: Way, request: CompletionRequest | EmbeddingRequest, attempt: Callable[[Route], Awaitable[AnswerT]]
    ) -> tuple[AnswerT, int]:
        """The answer of the first route that gives one, and how many attempts were made."""
        attempts = 0
        deadline = self._clock.monotonic() + request.timeout
        try:
            async with asyncio.timeout(request.timeout):
                while True:
                    route, told = way.route, False
                    try:
                        permit = await self.limiter.permit(route.lane, request)
                        attempts += 1
                        answer = await _permitted(permit, attempt(route))
                        break
                    except Held as held:
                        failure = Failure(
                            Kind.RATE_LIMITED,
                            f"it was not asked: {held.why}",
                            retry_after=held.retry_after,
                            waits_for=held.waits_for,
                        )
                    except AttemptFailed as error:
                        failure, told = error.failure, error.told
                    decision = way.failed(failure, time_left=deadline - self._clock.monotonic())
                    # Who has heard a part of an answer gets no second one.
                    if decision.sleep is None or told:
                        raise error_of(
                            failure,
                            attempts=attempts,
                            provider=route.provider.name,
                            model=route.model,
                            retry_after=decision.retry_after,
                        ) from None
                    await self._before_next(route, failure, attempts, decision.sleep)
        except TimeoutError:
            provider = way.route.provider.name
            raise DeadlineExceeded(
                f"provider {provider!r} did not answer within {request.timeout:g} s ({_requests(attempts)}); "
                f"allow more time, or ask fewer questions at once",
                attempts=attempts,
                provider=provider,
                model=way.route.model,
            ) from None
        way.answered()
        return answer, attempts

    async def _complete(self, request: CompletionRequest, on_delta: OnDelta | None, route: Route) -> Completion:
        """One attempt."""
        streamed = streams(route.upstream.stream, request, to_caller=on_delta is not None)
        heard = Heard(on_delta) if streamed else None
        completion: Completion | None = None
        try:
            with self._counted(route):
                async with timed(route.upstream.timeouts, request.timeout, heard):
                    completion = await route.provider.complete(route.model, request, heard)
        except AttemptFailed as error:
            error.told = heard is not None and heard.told
            raise
        finally:
            if completion is None and heard is not None and (heard.pieces or heard.tokens_in is not None):
                tokens_in = _estimated(request) if heard.tokens_in is None else heard.tokens_in
                self.counts.gave_up(route.provider.name, route.model, tokens_in, heard.tokens_out)
        told = heard is not None and heard.told
        if on_delta is not None and not told and completion.output:  # it can't stream, or refused
            on_delta(completion.output)
        return completion

    @contextmanager
    def _counted(self, route: Route) -> Iterator[None]:
        """One attempt in counts and traces."""
        provider, counts, began, outcome = route.provider, self.counts, self._clock.monotonic(), "given_up"
        counts.in_flight[provider.name] += 1
        try:
            with span("attempt", "client") as attempting:
                if attempting:
                    attempting.set(server(provider.endpoint))
                try:
                    yield
                except AttemptFailed as error:
                    outcome = error.reason
                    if attempting:
                        attempting.set({"http.response.status_code": error.failure.status})
                    raise
            outcome = "ok"
        finally:
            counts.in_flight[provider.name] -= 1
            counts.attempted(provider.name, route.model, outcome, self._clock.monotonic() - began)

    async def _before_next(self, failed: Route, failure: Failure, attempts: int, seconds: float) -> None:
        # Not the provider's message: it may quote the prompt.
        _log.info(
            "provider %s: attempt %d failed (%s, HTTP %s), again in %.2f s",
            *(failed.provider.name, attempts, failure.kind.value, failure.status or "-", seconds),
        )
        if seconds:
            await self._sleep(seconds)

    async def submit_batch(
        self, model: str, label: str, items: Sequence[BatchItem], *, again: bool = False
    ) -> SubmittedBatch:
        return await self._batches.submit_batch(model, label, items, again=again)

    async def batch_status(self, batch: str) -> BatchStatus:
        return await self._batches.batch_status(batch)

    def batch_results(self, batch: str) -> AsyncIterator[BatchResult]:
        return self._batches.batch_results(batch)

    async def cancel_batch(self, batch: str) -> None:
        await self._batches.cancel_batch(batch)

    async def check_models(self, models: Sequence[str]) -> list[ModelCheck]:
        return [self._check(model) for model in models]

    def _check(self, name: str) -> ModelCheck:
        models = self._router.models(name)
        if isinstance(models, Problem):
            return ModelCheck(name, models.reason, models.message)
        # An address may hold secrets: only its hash leaves this service.
        endpoints = sorted({route.provider.endpoint for route in models[0]})
        endpoint = hashlib.sha256("\n".join(endpoints).encode()).hexdigest()[:12]
        routes = chain(*models, *self._router.longer(name))
        batches = any(not isinstance(route.provider.batches(route.model), Problem) for route in models[0])
        return checked(name, endpoint, [(route.provider.prices, route.model) for route in routes], batches=batches)

    async def list_models(self) -> list[ModelInfo]:
        """By provider, then model: those known by name and those that were asked. `provider/*` stands for a provider
        without any."""
        infos = []
        limits: defaultdict[tuple[str, str], list[LimitState]] = defaultdict(list)
        for lane, state in self.limiter.states().items():
            limits[lane.provider, lane.model].append(state)
        for name, pool in sorted(self._router.pools.items()):
            known = {model for upstream in pool.upstreams for model in upstream.models or upstream.provider.models()}
            known |= {model for provider, model in limits if provider == name and pool.routes(model)}
            for model in sorted(known) or ["*"]:
                routes = pool.routes(model)
                problems = [route.provider.problem(model) for route in routes]
                problem = None if None in problems else problems[0]
                if problem is not None and not pool.listed:
                    continue
                tariff = routes[0].provider.prices.tariff(model)
                infos.append(
                    ModelInfo(
                        model=f"{name}/{model}",
                        provider=name,
                        available=problem is None,
                        problem=None if problem is None else problem.message,
                        price=tariff.price if tariff else None,
                        price_version=tariff.version if tariff else "",
                        limits=tuple(limits.get((name, model), ())),
                    )
                )
        return infos

    async def aclose(self) -> None:
        """Closes connections and ends the local model."""
        async with AsyncExitStack() as stack:
            for pool in self._router.pools.values():
                for upstream in pool.upstreams:
                    stack.push_async_callback(upstream.provider.aclose)


async def _permitted(permit: Permit, attempt: Awaitable[AnswerT]) -> AnswerT:
    try:
        answer = await attempt
        permit.answered(as_billed(answer) if isinstance(answer, Embeddings) else answer)
        return answer
    except AttemptFailed as error:
        permit.failed(error.failure)
        raise
    finally:
        permit.release()


def _estimated(request: CompletionRequest) -> int:
    """Tokens of a question whose provider did not say: four characters each, as in English."""
    return sum(len(message.content) for message in request.messages) // 4


def _requests(attempts: int) -> str:
    return f"{attempts} request was made" if attempts == 1 else f"{attempts} requests were made"
