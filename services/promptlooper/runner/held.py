"""What a Runner holds of an experiment: its claimed runs with what they need to go on."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from promptlooper.experiment import InputRow
from promptlooper.run import StageResult
from promptlooper.runner.store import repository
from promptlooper.runner.turn import Claim

CHUNKS_KEPT = 8


@dataclass(slots=True)
class Held:
    """A claimed run. Between two stages it has no task: a turn stores the one before the other begins."""

    claim: Claim
    row: InputRow
    results: tuple[StageResult, ...]
    task: asyncio.Task[None] | None = None
    cancelled: bool = False  # somebody wants this run stopped


class InputRows:
    """The rows of an experiment's inputs; chunks are read when needed and the last few kept."""

    def __init__(self, experiment_id: str, read: Callable[[Callable[..., Any]], Awaitable[Any]]) -> None:
        self._experiment_id, self._read = experiment_id, read
        self._chunks: OrderedDict[int, list[InputRow]] = OrderedDict()

    async def of(self, indexes: Iterable[int]) -> dict[int, InputRow]:
        wanted = list(indexes)
        for number in sorted({index // repository.INPUTS_PER_CHUNK for index in wanted} - self._chunks.keys()):
            chunk = partial(repository.input_chunk, experiment_id=self._experiment_id, chunk=number)
            self._chunks[number] = await self._read(chunk)
        rows = {}
        for index in wanted:
            number, offset = divmod(index, repository.INPUTS_PER_CHUNK)
            self._chunks.move_to_end(number)
            rows[index] = self._chunks[number][offset]
        while len(self._chunks) > CHUNKS_KEPT:
            self._chunks.popitem(last=False)
        return rows
