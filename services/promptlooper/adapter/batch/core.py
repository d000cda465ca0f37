"""The Adapter's batches: whose they are, what their answers cost, and what is tried again."""

from __future__ import annotations

import asyncio
import random as _random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

from promptlooper.adapter.batch.format import Answer, BatchProvider, Unanswered
from promptlooper.adapter.batch.handle import Handle, handle_of, hash_of
from promptlooper.adapter.counts import AdapterCounts
from promptlooper.adapter.providers.provider import Problem, error_of_problem
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind, decide, error_of
from promptlooper.adapter.routes.route import Route, by_weight
from promptlooper.adapter.routes.router import Router
from promptlooper.adapter.tariff import in_batch
from promptlooper.batches import (
    MOST_ITEMS,
    BatchGateway,
    BatchItem,
    BatchResult,
    BatchState,
    BatchStatus,
    SubmittedBatch,
    refuse_unended,
)
from promptlooper.clock import Clock
from promptlooper.completion import Completion
from promptlooper.errors import (
    BatchCancelled,
    BatchExpired,
    DeadlineExceeded,
    DomainError,
    InvalidArgument,
    ProviderCredentials,
    ProviderRejected,
)

SUBMIT_TIMEOUT = 280.0  # seconds: the questions of a batch are many
TIMEOUT = 25.0  # of the other calls
SILENCE = 60.0  # between two results
_LABEL = re.compile(r"[a-z0-9-]{1,63}")
_ITEM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

T = TypeVar("T")


class Batches(BatchGateway):
    """A batch stays with the address and the key that it was submitted with."""

    def __init__(
        self,
        router: Router,
        counts: AdapterCounts,
        *,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]],
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._router = router
        self._counts = counts
        self._clock = clock
        self._sleep = sleep
        self._random = random

    async def submit_batch(
        self, model: str, label: str, items: Sequence[BatchItem], *, again: bool = False
    ) -> SubmittedBatch:
        _check(model, label, items, again)
        routes = self._routes(model)
        async with _within(SUBMIT_TIMEOUT, next(iter(routes))):
            if again:
                for route, provider in routes.items():
                    find = partial(provider.find, label)
                    if (found := await self._done(route, find, repeat=True)) is not None:
                        return SubmittedBatch(_handle(route, found))
                if not items:
                    return SubmittedBatch("")
            route = by_weight(list(routes), self._random)
            submit = partial(routes[route].submit, route.model, label, items)
            submitted = await self._done(route, submit, repeat=False)
        refused = tuple(BatchResult(item_id, error=_error(route, said)) for item_id, said in submitted.refused)
        if not submitted.batch_id:
            return SubmittedBatch("", refused)
        self._counts.batches[route.provider.name] += 1
        self._counts.batch_items[route.provider.name] += len(items) - len(refused)
        return SubmittedBatch(_handle(route, submitted.batch_id), refused)

    async def batch_status(self, batch: str) -> BatchStatus:
        handle = handle_of(batch)
        route, provider = self._submitted(handle)
        async with _within(TIMEOUT, route):
            return await self._status(handle, route, provider)

    async def _status(self, handle: Handle, route: Route, provider: BatchProvider) -> BatchStatus:
        try:
            return await self._done(route, partial(provider.status, handle.batch_id), repeat=True)
        except ProviderRejected as error:
            if error.metadata.get("status") == "404":
                return BatchStatus(BatchState.UNKNOWN)
            raise

    async def batch_results(self, batch: str) -> AsyncIterator[BatchResult]:
        handle = handle_of(batch)
        route, provider = self._submitted(handle)
        async with _within(TIMEOUT, route):
            status = await self._status(handle, route, provider)
        refuse_unended(status)
        async with aclosing(provider.results(handle.model, handle.batch_id)) as results:
            while True:
                try:
                    async with _within(SILENCE, route):
                        item_id, answer = await anext(results)
                except StopAsyncIteration:
                    return
                except AttemptFailed as error:
                    raise _error(route, error.failure) from None
                yield self._result(route, item_id, answer)

    async def cancel_batch(self, batch: str) -> None:
        handle = handle_of(batch)
        route, provider = self._submitted(handle)
        async with _within(TIMEOUT, route):
            if (await self._status(handle, route, provider)).state is not BatchState.RUNNING:
                return
            try:
                await self._done(route, partial(provider.cancel, handle.batch_id), repeat=True)
            except DomainError:
                if (await self._status(handle, route, provider)).state is BatchState.RUNNING:
                    raise

    async def _done(self, route: Route, call: Callable[[], Awaitable[T]], *, repeat: bool) -> T:
        """What a call answers. One that is not to be repeated is repeated only where the provider asks to wait: what
        went wrong otherwise may have been done."""
        attempts = 0
        deadline = self._clock.monotonic() + TIMEOUT
        while True:
            attempts += 1
            try:
                return await call()
            except AttemptFailed as error:
                failure = error.failure
            left = deadline - self._clock.monotonic()
            decision = decide(failure, attempts=attempts, time_left=left, random=self._random)
            if decision.sleep is None or not (repeat or failure.kind is Kind.RATE_LIMITED):
                raise _error(route, failure, attempts, decision.retry_after) from None
            await self._sleep(decision.sleep)

    def _routes(self, model: str) -> dict[Route, BatchProvider]:
        """Who can be asked now for a batch of a model. Raises a DomainError where nobody can."""
        routes = self._router.routes(model)
        if isinstance(routes, Problem):
            raise error_of_problem(routes, model)
        found: dict[Route, BatchProvider] = {}
        problems: list[Problem] = []
        for route in routes:
            provider = route.provider.problem(route.model) or route.provider.batches(route.model)
            if isinstance(provider, Problem):
                problems.append(provider)
            else:
                found[route] = provider
        if not found:
            raise error_of_problem(problems[0], model)
        return found

    def _submitted(self, handle: Handle) -> tuple[Route, BatchProvider]:
        """Who was asked for a batch. Raises a DomainError."""
        name = f"{handle.provider}/{handle.model}"
        pool = self._router.pools.get(handle.provider)
        upstream = next((up for up in pool.upstreams if hash_of(up) == handle.upstream), None) if pool else None
        if upstream is None:
            raise ProviderCredentials(
                f"the address or the key of provider {handle.provider!r} that the batch was submitted with is not in "
                f"the providers file any more; put it back, or give the batch up",
                provider=handle.provider,
                model=handle.model,
            )
        provider = upstream.provider.problem(handle.model) or upstream.provider.batches(handle.model)
        if isinstance(provider, Problem):
            raise error_of_problem(provider, name)
        return Route(upstream, handle.model), provider

    def _result(self, route: Route, item_id: str, answer: Answer) -> BatchResult:
        provider = route.provider.name
        if isinstance(answer, Completion):
            cost = route.provider.prices.cost(route.model, in_batch(answer))
            completion = replace(answer, cost_nanousd=cost.nanousd, price_version=cost.version)
            self._counts.completed(provider, route.model, completion)
            return BatchResult(item_id, completion)
        error = _error(route, answer) if isinstance(answer, Failure) else _unanswered(route, answer)
        self._counts.completions[provider, error.reason] += 1
        return BatchResult(item_id, error=error)


def _check(model: str, label: str, items: Sequence[BatchItem], again: bool) -> None:
    if not _LABEL.fullmatch(label):
        raise InvalidArgument(f"the label {label!r} is none; write 1 to 63 of a-z, 0-9 and '-'", field="label")
    if not (0 if again else 1) <= len(items) <= MOST_ITEMS:
        raise InvalidArgument(f"a batch has 1 to {MOST_ITEMS} items, not {len(items)}", field="items")
    seen: set[str] = set()
    for item in items:
        if not _ITEM_ID.fullmatch(item.item_id):
            message = f"the item_id {item.item_id!r} is none; write 1 to 64 letters, digits, '_' and '-'"
            raise InvalidArgument(message, field="item_id")
        if item.item_id in seen:
            raise InvalidArgument(f"two items have the item_id {item.item_id!r}; take another", field="item_id")
        seen.add(item.item_id)
        if item.request.model != model:
            message = f"the item {item.item_id!r} is for model {item.request.model!r}, the batch for {model!r}"
            raise InvalidArgument(f"{message}; make a batch for each", field="model")


@asynccontextmanager
async def _within(seconds: float, route: Route) -> AsyncIterator[None]:
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise
        provider = route.provider.name
        raise DeadlineExceeded(
            f"provider {provider!r} did not answer within {seconds:g} s", provider=provider, model=route.model
        ) from None


def _handle(route: Route, batch_id: str) -> str:
    return str(Handle(route.provider.name, hash_of(route.upstream), batch_id, route.model))


def _error(route: Route, failure: Failure, attempts: int = 1, retry_after: float | None = None) -> DomainError:
    said = failure.retry_after if retry_after is None else retry_after
    return error_of(failure, attempts=attempts, provider=route.provider.name, model=route.model, retry_after=said)


def _unanswered(route: Route, why: Unanswered) -> DomainError:
    provider, model = route.provider.name, route.model
    if why is Unanswered.EXPIRED:
        message = "the batch's time was over before this question was answered; ask it directly, or in another batch"
        return BatchExpired(message, provider=provider, model=model)
    message = "the batch was cancelled before this question was answered"
    return BatchCancelled(message, provider=provider, model=model)
