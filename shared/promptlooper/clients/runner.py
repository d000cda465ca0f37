"""The Runner over gRPC."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from promptlooper.caching import CacheStats
from promptlooper.clients.resuming import ConnectionListener, ResumedStream
from promptlooper.completion import ModelInfo
from promptlooper.errors import TooLarge
from promptlooper.experiment import Experiment, ExperimentSpec, ExperimentSummary
from promptlooper.experiments import (
    EventPage,
    Execution,
    ExperimentFilter,
    ExperimentPage,
    Experiments,
    ExperimentUpdate,
    RunPage,
    RunWatchMessage,
    StartedRun,
    Validation,
    WatchMessage,
)
from promptlooper.rpc.client import domain_errors, open_channel
from promptlooper.rpc.security import ChannelSecurity
from promptlooper.run import Run, RunState
from promptlooper.scoring import ScorerInfo
from promptlooper.sources import ExperimentSource, FilePiece, RenderedRun, RunTarget, Uploaded
from promptlooper.v1 import run_pb2
from promptlooper.v1 import runner_service_pb2 as pb
from promptlooper.v1.runner_service_pb2_grpc import RunnerServiceStub
from promptlooper.wire.caching import scope_for, stats_from_pb
from promptlooper.wire.completion import model_from_pb
from promptlooper.wire.experiment import spec_to_pb
from promptlooper.wire.experiments import (
    event_page_from_pb,
    experiment_from_pb,
    experiment_page_from_pb,
    filter_to_pb,
    run_page_from_pb,
    summary_from_pb,
    update_to_pb,
    validation_from_pb,
    watch_message_from_pb,
)
from promptlooper.wire.limits import LARGEST_MESSAGE, Measured
from promptlooper.wire.run import RUN_STATES, run_from_pb
from promptlooper.wire.scoring import scorer_from_pb
from promptlooper.wire.single_runs import execution_from_pb, run_watch_from_pb, started_from_pb, target_to_pb
from promptlooper.wire.sources import (
    piece_to_pb,
    render_to_pb,
    rendered_from_pb,
    source_to_pb,
    uploaded_from_pb,
)

RECONNECT_FOR = 60.0  # seconds without a message after which a watch or an export gives up


@asynccontextmanager
async def connected(
    address: str,
    *,
    security: ChannelSecurity | None = None,
    reconnect_for: float = RECONNECT_FOR,
    listener: ConnectionListener | None = None,
) -> AsyncIterator[RunnerClient]:
    async with open_channel(address, pb.DESCRIPTOR.services_by_name["RunnerService"], security=security) as channel:
        yield RunnerClient(channel, address, reconnect_for=reconnect_for, listener=listener)


class RunnerClient(Experiments):
    """`watch` and `export` go on by themselves where they were when the connection is lost or the server restarts, and
    raise ServiceUnavailable after `reconnect_for` seconds without a message; `listener` hears of it. The channel may
    send a call again: what has no `request_id` gets one here, so that it is done once all the same."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        address: str,
        *,
        reconnect_for: float = RECONNECT_FOR,
        listener: ConnectionListener | None = None,
    ) -> None:
        self._stub = RunnerServiceStub(channel)
        self._address = address
        self._reconnect_for = reconnect_for
        self._listener = listener

    async def create(self, experiment: ExperimentSpec | ExperimentSource, request_id: str = "") -> Experiment:
        request = pb.CreateExperimentRequest(request_id=request_id or _new_request_id(), **_given(experiment))
        self._refuse_too_large(request)
        with domain_errors(self._address, "runner"):
            response = await self._stub.CreateExperiment(request)
        return experiment_from_pb(response.experiment)

    async def validate(self, experiment: ExperimentSpec | ExperimentSource) -> Validation:
        request = pb.ValidateExperimentRequest(**_given(experiment))
        self._refuse_too_large(request)
        with domain_errors(self._address, "runner"):
            return validation_from_pb(await self._stub.ValidateExperiment(request))

    async def upload(self, piece: FilePiece) -> Uploaded:
        with domain_errors(self._address, "runner"):
            return uploaded_from_pb(await self._stub.UploadFile(piece_to_pb(piece)))

    async def render(self, experiment: ExperimentSpec | ExperimentSource | str, run_index: int = 0) -> RenderedRun:
        request = render_to_pb(experiment, run_index)
        self._refuse_too_large(request)
        with domain_errors(self._address, "runner"):
            return rendered_from_pb(await self._stub.RenderRun(request))

    def _refuse_too_large(self, request: Measured) -> None:
        """Before grpc does, in words that say what to do."""
        size = request.ByteSize()
        if size > LARGEST_MESSAGE:
            raise TooLarge(
                f"the experiment has {size:,} bytes with its inputs, and at most {LARGEST_MESSAGE:,} can be sent to"
                f" {self._address}; split its inputs, or run it without --server"
            )

    async def get(self, experiment_id: str) -> Experiment:
        with domain_errors(self._address, "runner"):
            response = await self._stub.GetExperiment(pb.GetExperimentRequest(experiment_id=experiment_id))
        return experiment_from_pb(response.experiment)

    async def list_experiments(
        self, where: ExperimentFilter, page_size: int = 0, page_token: str = ""
    ) -> ExperimentPage:
        request = filter_to_pb(where, page_size, page_token)
        with domain_errors(self._address, "runner"):
            return experiment_page_from_pb(await self._stub.ListExperiments(request))

    async def cancel(self, experiment_id: str) -> Experiment:
        with domain_errors(self._address, "runner"):
            response = await self._stub.CancelExperiment(pb.CancelExperimentRequest(experiment_id=experiment_id))
        return experiment_from_pb(response.experiment)

    async def pause(self, experiment_id: str) -> Experiment:
        with domain_errors(self._address, "runner"):
            response = await self._stub.PauseExperiment(pb.PauseExperimentRequest(experiment_id=experiment_id))
        return experiment_from_pb(response.experiment)

    async def resume(self, experiment_id: str, request_id: str = "") -> Experiment:
        request = pb.ResumeExperimentRequest(experiment_id=experiment_id, request_id=request_id or _new_request_id())
        with domain_errors(self._address, "runner"):
            return experiment_from_pb((await self._stub.ResumeExperiment(request)).experiment)

    async def retry(self, experiment_id: str, request_id: str = "") -> Experiment:
        request = pb.RetryExperimentRequest(experiment_id=experiment_id, request_id=request_id or _new_request_id())
        with domain_errors(self._address, "runner"):
            return experiment_from_pb((await self._stub.RetryExperiment(request)).experiment)

    async def update(self, experiment_id: str, update: ExperimentUpdate) -> Experiment:
        request = update_to_pb(experiment_id, update)
        with domain_errors(self._address, "runner"):
            return experiment_from_pb((await self._stub.UpdateExperiment(request)).experiment)

    async def delete(self, experiment_id: str) -> None:
        with domain_errors(self._address, "runner"):
            await self._stub.DeleteExperiment(pb.DeleteExperimentRequest(experiment_id=experiment_id))

    async def watch(
        self,
        experiment_id: str,
        resume_token: str = "",
        kinds: Sequence[str] = (),
        bookmark_interval: float | None = None,
    ) -> AsyncIterator[WatchMessage]:
        """Snapshot, events, terminal; a server that drains is asked again with the last token."""
        request = pb.WatchExperimentRequest(
            experiment_id=experiment_id,
            resume_token=resume_token,
            kinds=kinds,
            bookmark_interval=_duration(bookmark_interval),
        )
        ended = False
        stream = self._resumed().messages(
            lambda: self._stub.WatchExperiment(request), pb.WatchExperimentResponse, until=lambda: ended
        )
        async with aclosing(stream):
            async for response in stream:
                message = watch_message_from_pb(response)
                request.resume_token = message.resume_token
                ended = message.terminal is not None
                yield message

    async def start_run(self, target: RunTarget, request_id: str = "") -> StartedRun:
        request = pb.StartRunRequest(target=target_to_pb(target), request_id=request_id or _new_request_id())
        self._refuse_too_large(request)
        with domain_errors(self._address, "runner"):
            return started_from_pb(await self._stub.StartRun(request))

    async def watch_run(
        self, run_id: str, resume_token: str = "", bookmark_interval: float | None = None
    ) -> AsyncIterator[RunWatchMessage]:
        """Snapshot, events, terminal; a server that drains is asked again with the last token."""
        request = pb.WatchRunRequest(
            run_id=run_id, resume_token=resume_token, bookmark_interval=_duration(bookmark_interval)
        )
        ended = False
        stream = self._resumed().messages(
            lambda: self._stub.WatchRun(request), pb.WatchRunResponse, until=lambda: ended
        )
        async with aclosing(stream):
            async for response in stream:
                message = run_watch_from_pb(response)
                request.resume_token = message.resume_token
                ended = message.terminal is not None
                yield message

    async def execute_run(self, target: RunTarget, timeout: float | None = None) -> AsyncIterator[Execution]:
        """Without a run in the end where it was cut: it is not repeated, as it may have cost something."""
        request = pb.ExecuteRunRequest(target=target_to_pb(target))
        self._refuse_too_large(request)
        call = self._stub.ExecuteRun(request, timeout=timeout)
        try:
            with domain_errors(self._address, "runner"):
                async for response in call:
                    yield execution_from_pb(response)
        finally:
            call.cancel()

    async def list_events(
        self,
        experiment_id: str,
        after_event_seq: int = 0,
        page_size: int = 0,
        page_token: str = "",
        kinds: Sequence[str] = (),
    ) -> EventPage:
        request = pb.ListEventsRequest(
            experiment_id=experiment_id,
            after_event_seq=after_event_seq,
            page_size=page_size,
            page_token=page_token,
            kinds=kinds,
        )
        with domain_errors(self._address, "runner"):
            return event_page_from_pb(await self._stub.ListEvents(request))

    async def get_run(self, run_id: str) -> Run:
        with domain_errors(self._address, "runner"):
            response = await self._stub.GetRun(pb.GetRunRequest(run_id=run_id))
        return run_from_pb(response.run)

    async def list_runs(
        self,
        experiment_id: str,
        page_size: int = 0,
        page_token: str = "",
        states: Sequence[RunState] = (),
        full: bool = False,
    ) -> RunPage:
        request = pb.ListRunsRequest(
            experiment_id=experiment_id,
            page_size=page_size,
            page_token=page_token,
            states=[RUN_STATES.number(state) for state in states],
            view=run_pb2.RUN_VIEW_FULL if full else run_pb2.RUN_VIEW_BASIC,
        )
        with domain_errors(self._address, "runner"):
            return run_page_from_pb(await self._stub.ListRuns(request))

    async def cancel_run(self, run_id: str) -> Run:
        with domain_errors(self._address, "runner"):
            response = await self._stub.CancelRun(pb.CancelRunRequest(run_id=run_id))
        return run_from_pb(response.run)

    async def export(self, experiment_id: str, start_run_index: int = 0) -> AsyncIterator[Run]:
        request = pb.ExportRunsRequest(experiment_id=experiment_id, start_run_index=start_run_index)
        stream = self._resumed().messages(lambda: self._stub.ExportRuns(request), pb.ExportRunsResponse)
        async with aclosing(stream):
            async for response in stream:
                for message in response.runs:
                    request.start_run_index = message.run_index + 1
                    yield run_from_pb(message)

    async def summarize(self, experiment_id: str) -> ExperimentSummary:
        request = pb.SummarizeExperimentRequest(experiment_id=experiment_id)
        with domain_errors(self._address, "runner"):
            response = await self._stub.SummarizeExperiment(request)
        return summary_from_pb(response.summary)

    async def list_models(self) -> list[ModelInfo]:
        with domain_errors(self._address, "runner"):
            response = await self._stub.ListModels(pb.RunnerServiceListModelsRequest())
        return [model_from_pb(model) for model in response.models]

    async def list_scorers(self) -> list[ScorerInfo]:
        with domain_errors(self._address, "runner"):
            response = await self._stub.ListScorers(pb.RunnerServiceListScorersRequest())
        return [scorer_from_pb(scorer) for scorer in response.scorers]

    async def cache_stats(self) -> CacheStats:
        with domain_errors(self._address, "runner"):
            return stats_from_pb(await self._stub.GetCacheStats(pb.GetCacheStatsRequest()))

    async def purge_cache(self, scope: str, model: str = "") -> int:
        with domain_errors(self._address, "runner"):
            return (
                await self._stub.PurgeCache(pb.PurgeCacheRequest(scope=scope_for(scope, model), model=model))
            ).deleted

    def _resumed(self) -> ResumedStream:
        return ResumedStream(self._address, self._reconnect_for, listener=self._listener)


def _new_request_id() -> str:
    return uuid.uuid4().hex


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _given(experiment: ExperimentSpec | ExperimentSource) -> dict[str, Any]:
    if isinstance(experiment, ExperimentSource):
        return {"source": source_to_pb(experiment)}
    return {"spec": spec_to_pb(experiment)}
