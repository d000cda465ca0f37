"""What the Adapter needs of a provider that answers batches, whatever its wire format."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeAlias

from promptlooper.adapter.providers.refusal import refusal
from promptlooper.adapter.retrying import AttemptFailed, Failure
from promptlooper.batches import LARGEST_BATCH, BatchItem, BatchStatus
from promptlooper.completion import Completion, CompletionRequest, fault_of
from promptlooper.errors import TooLarge

_AT_ONCE = 256  # questions that are written before others have their turn


class Unanswered(Enum):
    """Why an item has neither an answer nor an error. It is not billed."""

    EXPIRED = "expired"
    CANCELLED = "cancelled"


Answer: TypeAlias = Completion | Failure | Unanswered


@dataclass(frozen=True, slots=True)
class Submitted:
    """`batch_id` is the provider's, "" where it can't be asked a single item. `refused` are those it can't be asked."""

    batch_id: str
    refused: Sequence[tuple[str, Failure]] = ()


class BatchProvider(Protocol):
    """The batches of one address with one key. Everything raises AttemptFailed; of a batch that the provider does not
    know (any more), with the status 404."""

    async def find(self, label: str) -> str | None:
        """The provider's id of a batch with this label; None where there is none, or none can be told apart."""
        ...

    async def submit(self, model: str, label: str, items: Sequence[BatchItem]) -> Submitted: ...

    async def status(self, batch_id: str) -> BatchStatus: ...

    def results(self, model: str, batch_id: str) -> AsyncGenerator[tuple[str, Answer], None]:
        """Of a batch that has ended, without costs."""
        ...

    async def cancel(self, batch_id: str) -> None: ...


async def written(
    items: Sequence[BatchItem], write: Callable[[CompletionRequest], bytes]
) -> tuple[list[tuple[str, bytes]], list[tuple[str, Failure]]]:
    """The items' questions as they are sent, and those that can't be. Raises TooLarge."""
    questions: list[tuple[str, bytes]] = []
    refused: list[tuple[str, Failure]] = []
    size = 0
    for index, item in enumerate(items):
        if index % _AT_ONCE == 0:
            await asyncio.sleep(0)
        try:
            if fault := fault_of(item.request):
                raise refusal(fault)
            question = write(item.request)
        except AttemptFailed as error:
            refused.append((item.item_id, error.failure))
            continue
        questions.append((item.item_id, question))
        size += len(question)
        if size > LARGEST_BATCH:
            raise TooLarge(f"the batch has more than {LARGEST_BATCH >> 20} MiB; put fewer questions into it")
    return questions, refused
