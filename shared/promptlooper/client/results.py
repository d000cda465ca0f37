"""What came of an experiment: its summary at hand, its runs when they are asked for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing
from typing import TYPE_CHECKING, Protocol

from promptlooper.client.frames import ARROW, PANDAS, Table
from promptlooper.experiment import Experiment, ExperimentState, ExperimentSummary
from promptlooper.run import Run

if TYPE_CHECKING:
    import pandas
    import pyarrow


class AsyncRows(Protocol):
    def rows(self, experiment_id: str, *, start: int = 0) -> AsyncGenerator[Run, None]: ...


class Rows(Protocol):
    def rows(self, experiment_id: str, *, start: int = 0) -> Iterator[Run]: ...


class Outcome:
    """How an experiment stands, or how it ended."""

    def __init__(self, summary: ExperimentSummary) -> None:
        self.summary = summary

    @property
    def experiment(self) -> Experiment:
        return self.summary.experiment

    @property
    def experiment_id(self) -> str:
        return self.experiment.experiment_id

    @property
    def state(self) -> ExperimentState:
        return self.experiment.state

    @property
    def passed(self) -> bool:
        """Whether it finished without a failed run, or with no more than its gates allow, and met every gate."""
        return self.summary.finished and self.summary.gates_met

    def __repr__(self) -> str:
        counts = self.experiment.counts
        runs = f"{counts.completed + counts.failed} of {counts.total} runs, {counts.failed} failed"
        return f"<{type(self).__name__} of {self.experiment_id}: {self.state.value}, {runs}>"


class AsyncResult(Outcome):
    """The result of `AsyncClient.run`; rows are read through that client."""

    def __init__(self, summary: ExperimentSummary, client: AsyncRows) -> None:
        super().__init__(summary)
        self._client = client

    async def rows(self) -> AsyncGenerator[Run, None]:
        """Every run that has started, in full, by run index; read as they are asked for."""
        async with aclosing(self._client.rows(self.experiment_id)) as runs:
            async for run in runs:
                yield run

    async def to_pandas(self) -> pandas.DataFrame:
        """A row per run, with the columns of a `.csv` file. Raises MissingPackage without pandas."""
        return (await self._table(PANDAS)).to_pandas()

    async def to_arrow(self) -> pyarrow.Table:
        """As `to_pandas`, for Arrow. Raises MissingPackage without pyarrow."""
        return (await self._table(ARROW)).to_arrow()

    async def _table(self, package: tuple[str, str, str]) -> Table:
        table = Table(self.summary, package)
        async with aclosing(self.rows()) as runs:
            async for run in runs:
                table.add(run)
        return table


class Result(Outcome):
    """The result of `Client.run`, whose rows are read through that client, or of `run`, which opens one for that."""

    def __init__(self, summary: ExperimentSummary, reading: Callable[[], AbstractContextManager[Rows]]) -> None:
        super().__init__(summary)
        self._reading = reading

    def rows(self) -> Iterator[Run]:
        """Every run that has started, in full, by run index; read as they are asked for."""
        with self._reading() as client:
            yield from client.rows(self.experiment_id)

    def to_pandas(self) -> pandas.DataFrame:
        """A row per run, with the columns of a `.csv` file. Raises MissingPackage without pandas."""
        return self._table(PANDAS).to_pandas()

    def to_arrow(self) -> pyarrow.Table:
        """As `to_pandas`, for Arrow. Raises MissingPackage without pyarrow."""
        return self._table(ARROW).to_arrow()

    def _table(self, package: tuple[str, str, str]) -> Table:
        table = Table(self.summary, package)
        for run in self.rows():
            table.add(run)
        return table
