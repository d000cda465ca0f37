"""Batches: questions that a provider answers within hours, at half the price."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol

from promptlooper.completion import Completion, CompletionGateway, CompletionRequest
from promptlooper.errors import DomainError, InvalidArgument, ProviderRejected

MOST_ITEMS = 50_000  # of a batch
LARGEST_BATCH = 100 * 1024 * 1024  # bytes of its questions, as they are sent to the provider


class BatchState(Enum):
    """UNKNOWN: the provider knows no such batch any more. ENDED: no further item will be answered."""

    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    ENDED = "ENDED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class BatchItem:
    """`item_id` is unique in its batch: `[A-Za-z0-9_-]{1,64}`. Of the request its `timeout` and `once` mean nothing."""

    item_id: str
    request: CompletionRequest


@dataclass(frozen=True, slots=True)
class BatchResult:
    """An item's answer, or why there is none: BATCH_EXPIRED and BATCH_CANCELLED were not answered and not billed."""

    item_id: str
    completion: Completion | None = None
    error: DomainError | None = None


@dataclass(frozen=True, slots=True)
class SubmittedBatch:
    """`batch` is what the other calls take: it names the route and the provider's own id, and holds no secret. It is ""
    where no item was taken. `refused` are items that this provider can't be asked."""

    batch: str
    refused: tuple[BatchResult, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """Counts are of items, as the provider says; 0 where it does not."""

    state: BatchState
    total: int = 0
    answered: int = 0
    failed: int = 0
    expires_at: datetime | None = None
    message: str = ""  # of one that failed as a whole: why, as the provider says
    too_much: bool = False  # it failed as the provider has too much in batches: later, or less of it, may go well


def refuse_unended(status: BatchStatus) -> None:
    """Raises a DomainError where a batch has no results, or not yet."""
    if status.state is BatchState.UNKNOWN:
        raise ProviderRejected("the provider does not know the batch any more; ask its questions anew")
    if status.state is not BatchState.ENDED:
        raise InvalidArgument("the batch has not ended; ask for its results when it has", field="batch")


class BatchGateway(Protocol):
    """The Adapter's batches: its core when embedded, its client when distributed. They may raise what `complete`
    raises."""

    async def submit_batch(
        self, model: str, label: str, items: Sequence[BatchItem], *, again: bool = False
    ) -> SubmittedBatch:
        """Hands all items, of one `provider/model`, to the provider as one batch. `label` (`[a-z0-9-]{1,63}`) names it
        there. With `again` a batch with this label may be there already: it is looked for first, and returned; without
        items it is only looked for. Raises InvalidArgument where the provider answers no batches, or not such a one;
        TooLarge."""
        ...

    async def batch_status(self, batch: str) -> BatchStatus: ...

    def batch_results(self, batch: str) -> AsyncIterator[BatchResult]:
        """Of a batch that has ended, in no order. An item of which nothing comes was not answered, and is not billed:
        some providers say nothing of those they did not come to. May be asked again, as long as the provider keeps
        them."""
        ...

    async def cancel_batch(self, batch: str) -> None:
        """What is answered already stays so, and is billed. One that has ended stays as it is."""
        ...


class Gateway(CompletionGateway, BatchGateway, Protocol):
    """All that the Runner asks of the Adapter."""
