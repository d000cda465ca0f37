"""The Runner for programs without an event loop, for notebooks, and for programs that must not wait in theirs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from decimal import Decimal
from functools import partial
from types import EllipsisType
from typing import Self

from promptlooper.client.async_client import ENDS, LOOK_EVERY, AnyPath, AsyncClient
from promptlooper.client.loop_thread import LoopThread
from promptlooper.client.results import Result
from promptlooper.client.submitting import AnyExperiment
from promptlooper.client.traces import traced
from promptlooper.completion import ModelInfo
from promptlooper.experiment import Experiment, ExperimentState, ExperimentSummary
from promptlooper.experiments import Execution, RunWatchMessage, StartedRun, Validation, WatchMessage
from promptlooper.jsonvalue import Json
from promptlooper.run import Event, Run
from promptlooper.scoring import ScorerInfo
from promptlooper.sources import RenderedRun


class Client:
    """`AsyncClient` for everyone else: the same methods, which wait. Iterators read as they are asked for; one that is
    closed or forgotten ends its stream.

    Safe to use from several threads, and inside of a running event loop, as in a notebook: it works in a thread of its
    own. Close it, or use it in a `with` block. A forked process needs a client of its own.

    >>> with Client() as client:
    ...     result = client.run("capitals.yaml")
    ...     for run in result.rows():
    ...         print(run.input["country"], run.output)
    France The capital of France
    Japan The capital of Japan
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token_file: AnyPath = None,
        ca_file: AnyPath = None,
        cert_file: AnyPath = None,
        key_file: AnyPath = None,
        home: AnyPath = None,
    ) -> None:
        self._client = AsyncClient(
            address, token_file=token_file, ca_file=ca_file, cert_file=cert_file, key_file=key_file, home=home
        )
        self._thread = LoopThread()
        weakref.finalize(self, self._thread.stop).atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Experiments on a server go on; those in this process stop, and can be resumed."""
        self._thread.close()

    def run(
        self,
        experiment: AnyExperiment,
        *,
        request_id: str = "",
        on_progress: Callable[[Experiment], None] | None = None,
    ) -> Result:
        """Creates an experiment and follows it to its end. `on_progress` hears about every second how it stands."""
        with traced("promptlooper run"):
            created = self.create(experiment, request_id=request_id)
            return self.wait(created.experiment_id, on_progress=on_progress)

    def wait(self, experiment_id: str, *, on_progress: Callable[[Experiment], None] | None = None) -> Result:
        """Follows an experiment to its end. One that is paused is waited for."""
        for message in self.follow(experiment_id, kinds=ENDS, bookmark_interval=LOOK_EVERY):
            if message.experiment is not None and on_progress is not None:
                on_progress(message.experiment)
        return self.result(experiment_id)

    def result(self, experiment_id: str) -> Result:
        """The results so far."""
        return Result(self.summarize(experiment_id), lambda: nullcontext(self))

    def create(self, experiment: AnyExperiment, *, request_id: str = "") -> Experiment:
        """Stores an experiment, which then starts by itself. `experiment` is the path of an experiment file, a mapping
        that holds what such a file does, or an ExperimentSpec. A file is sent as it is, with the files that it names.
        The same `request_id` with the same experiment gives the first answer again. Raises InvalidExperiment with all
        that is wrong."""
        return self._thread.call(self._client.create(experiment, request_id=request_id))

    def validate(self, experiment: AnyExperiment) -> Validation:
        """How many runs and calls it would make, and about what they cost; stores nothing. Of a file that cannot be
        read as an experiment it raises InvalidExperiment."""
        return self._thread.call(self._client.validate(experiment))

    def render(self, experiment: AnyExperiment | Experiment, run_index: int = 0) -> RenderedRun:
        """The exact messages of a run's first stage, with placeholders those of later ones; calls no model. An
        Experiment is one that is stored."""
        return self._thread.call(self._client.render(experiment, run_index))

    def get(self, experiment_id: str) -> Experiment:
        """Raises ExperimentNotFound."""
        return self._thread.call(self._client.get(experiment_id))

    def list(
        self,
        *,
        project: str = "",
        tags: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
        states: Sequence[ExperimentState | str] = (),
    ) -> Iterator[Experiment]:
        """Experiments, newest first: those of a project, with all of the tags and metadata, in one of the states."""
        found = partial(self._client.list, project=project, tags=tags, metadata=metadata, states=states)
        yield from self._thread.iterate(found)

    def watch(self, experiment_id: str, *, after: int = 0, kinds: Sequence[str] = ()) -> Iterator[Event]:
        """The events of an experiment in order and each once, to its end: first those that have happened, then the
        others as they do. `after` is the number of the last event that is known already; `kinds` are those wanted,
        such as `run.failed`. Raises ResumeTokenExpired where events after that number are no longer kept."""
        yield from self._thread.iterate(partial(self._client.watch, experiment_id, after=after, kinds=kinds))

    def follow(
        self,
        experiment_id: str,
        *,
        resume_token: str = "",
        kinds: Sequence[str] = (),
        bookmark_interval: float | None = None,
    ) -> Iterator[WatchMessage]:
        """How an experiment stands, then each event as it happens, between them bookmarks with how it stands by then,
        and at the end how it ended. Goes on after the message that `resume_token` is of. A bookmark comes after
        `bookmark_interval` seconds (default 15)."""
        messages = partial(
            self._client.follow,
            experiment_id,
            resume_token=resume_token,
            kinds=kinds,
            bookmark_interval=bookmark_interval,
        )
        yield from self._thread.iterate(messages)

    def cancel(self, experiment_id: str) -> Experiment:
        """Stops it; what was answered is kept. One that ended stays as it is."""
        return self._thread.call(self._client.cancel(experiment_id))

    def pause(self, experiment_id: str) -> Experiment:
        """Starts nothing new of it until it is resumed; calls under way end."""
        return self._thread.call(self._client.pause(experiment_id))

    def resume(self, experiment_id: str, *, request_id: str = "") -> Experiment:
        """Goes on with one that was paused, cancelled or interrupted, each run after its last stored stage."""
        return self._thread.call(self._client.resume(experiment_id, request_id=request_id))

    def retry(self, experiment_id: str, *, request_id: str = "") -> Experiment:
        """Runs the failed runs again, each from the stage that failed."""
        return self._thread.call(self._client.retry(experiment_id, request_id=request_id))

    def update(
        self,
        experiment_id: str,
        *,
        max_concurrency: int | None = None,
        budget_usd: float | Decimal | None = None,
        budget_tokens: int | None = None,
    ) -> Experiment:
        """Changes limits, also while it runs; None stays as it is. What is spent already counts."""
        changed = self._client.update(
            experiment_id, max_concurrency=max_concurrency, budget_usd=budget_usd, budget_tokens=budget_tokens
        )
        return self._thread.call(changed)

    def delete(self, experiment_id: str) -> None:
        """Forgets it with its results. Raises ExperimentNotEnded while it runs."""
        self._thread.call(self._client.delete(experiment_id))

    def summarize(self, experiment_id: str) -> ExperimentSummary:
        """Results by variant, and the gates."""
        return self._thread.call(self._client.summarize(experiment_id))

    def rows(self, experiment_id: str, *, start: int = 0) -> Iterator[Run]:
        """Every run that has started, in full, by run index, from the one with index `start`."""
        yield from self._thread.iterate(partial(self._client.rows, experiment_id, start=start))

    def get_run(self, run_id: str) -> Run:
        """One run in full. Raises RunNotFound."""
        return self._thread.call(self._client.get_run(run_id))

    def cancel_run(self, run_id: str) -> Run:
        """Stops one run that has started."""
        return self._thread.call(self._client.cancel_run(run_id))

    def start_run(
        self,
        experiment: AnyExperiment | Experiment,
        *,
        row: Json | EllipsisType = ...,
        variant_id: str = "",
        request_id: str = "",
    ) -> StartedRun:
        """Stores one run as an experiment of its own, which then starts by itself. `row` stands for the inputs that the
        experiment has, with `expected` and `_id` where they are wanted; it is needed where there are several, as
        `variant_id` is. An Experiment is one that is stored, whose pipelines are used as they were."""
        started = self._client.start_run(experiment, row=row, variant_id=variant_id, request_id=request_id)
        return self._thread.call(started)

    def watch_run(
        self, run_id: str, *, resume_token: str = "", bookmark_interval: float | None = None
    ) -> Iterator[RunWatchMessage]:
        """As `follow`, of one run: at the end it comes in full."""
        messages = partial(
            self._client.watch_run, run_id, resume_token=resume_token, bookmark_interval=bookmark_interval
        )
        yield from self._thread.iterate(messages)

    def execute(
        self,
        experiment: AnyExperiment | Experiment,
        *,
        row: Json | EllipsisType = ...,
        variant_id: str = "",
        timeout: float | None = None,
    ) -> Iterator[Execution]:
        """One run now, as `start_run` takes it, for this caller alone: it waits in no queue and is not stored. Outputs
        come as they are generated, then each stage, and at the end the run in full. Who leaves it, or has waited
        `timeout` seconds, stops its calls."""
        messages = partial(self._client.execute, experiment, row=row, variant_id=variant_id, timeout=timeout)
        yield from self._thread.iterate(messages)

    def models(self) -> Sequence[ModelInfo]:
        """What can be asked."""
        return self._thread.call(self._client.models())

    def scorers(self) -> Sequence[ScorerInfo]:
        """How outputs can be scored."""
        return self._thread.call(self._client.scorers())


def run(
    experiment: AnyExperiment,
    address: str | None = None,
    *,
    home: AnyPath = None,
    request_id: str = "",
    on_progress: Callable[[Experiment], None] | None = None,
) -> Result:
    """Runs one experiment to its end, on the Runner at `address` or PROMPTLOOPER_SERVER, else in this process. Works
    inside of a running event loop too, which waits meanwhile.

    >>> result = run("capitals.yaml")
    >>> result.passed, [variant.score for variant in result.summary.variants]
    (True, [1.0])
    """
    reading = partial(Client, address, home=home)
    with reading() as client:
        done = client.run(experiment, request_id=request_id, on_progress=on_progress)
        return Result(done.summary, reading)
