"""The Runner's RPCs: convert in, ask the core, convert out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeAlias

import grpc

from promptlooper.errors import InvalidArgument
from promptlooper.experiments import Experiments
from promptlooper.rpc.deadlines import is_deadline
from promptlooper.v1 import run_pb2
from promptlooper.v1 import runner_service_pb2 as pb
from promptlooper.v1.runner_service_pb2_grpc import RunnerServiceServicer, add_RunnerServiceServicer_to_server
from promptlooper.wire.caching import runner_stats_to_pb
from promptlooper.wire.completion import model_to_pb
from promptlooper.wire.experiments import (
    event_page_to_pb,
    experiment_page_to_pb,
    experiment_to_pb,
    filter_from_pb,
    run_page_to_pb,
    summary_to_pb,
    update_from_pb,
    validation_to_pb,
    watch_message_to_pb,
)
from promptlooper.wire.run import RUN_STATES, basic, run_to_pb
from promptlooper.wire.scoring import scorer_to_pb
from promptlooper.wire.single_runs import execution_to_pb, run_watch_to_pb, started_to_pb, target_from_pb
from promptlooper.wire.sources import experiment_of, given_from_pb, piece_from_pb, rendered_to_pb, uploaded_to_pb

SERVICE = pb.DESCRIPTOR.services_by_name["RunnerService"]
SERVICE_NAME = SERVICE.full_name

EXPORT_RUNS = 200  # per message
EXPORT_BYTES = 1024 * 1024

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


def register(server: grpc.aio.Server, core: Experiments) -> None:
    add_RunnerServiceServicer_to_server(RunnerServicer(core), server)


class RunnerServicer(RunnerServiceServicer):
    """A watch ends when the core's iterator does: with its terminal message, or when the core drains."""

    def __init__(self, core: Experiments) -> None:
        self._core = core

    async def CreateExperiment(
        self, request: pb.CreateExperimentRequest, context: Context
    ) -> pb.CreateExperimentResponse:
        experiment = await self._core.create(given_from_pb(request), request.request_id)
        return pb.CreateExperimentResponse(experiment=experiment_to_pb(experiment))

    async def ValidateExperiment(
        self, request: pb.ValidateExperimentRequest, context: Context
    ) -> pb.ValidateExperimentResponse:
        return validation_to_pb(await self._core.validate(given_from_pb(request)))

    async def UploadFile(self, request: pb.UploadFileRequest, context: Context) -> pb.UploadFileResponse:
        return uploaded_to_pb(await self._core.upload(piece_from_pb(request)))

    async def RenderRun(self, request: pb.RenderRunRequest, context: Context) -> pb.RenderRunResponse:
        return rendered_to_pb(await self._core.render(experiment_of(request), request.run_index))

    async def StartRun(self, request: pb.StartRunRequest, context: Context) -> pb.StartRunResponse:
        return started_to_pb(await self._core.start_run(target_from_pb(request.target), request.request_id))

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncIterator[pb.WatchRunResponse]:
        messages = self._core.watch_run(request.run_id, request.resume_token, _seconds(request))
        async with _closing(messages):
            async for message in messages:
                yield run_watch_to_pb(message)

    async def ExecuteRun(self, request: pb.ExecuteRunRequest, context: Context) -> AsyncIterator[pb.ExecuteRunResponse]:
        left = context.time_remaining()
        messages = self._core.execute_run(target_from_pb(request.target), left if is_deadline(left) else None)
        async with _closing(messages):
            async for message in messages:
                yield execution_to_pb(message)

    async def GetExperiment(self, request: pb.GetExperimentRequest, context: Context) -> pb.GetExperimentResponse:
        experiment = await self._core.get(request.experiment_id)
        return pb.GetExperimentResponse(experiment=experiment_to_pb(experiment))

    async def ListExperiments(self, request: pb.ListExperimentsRequest, context: Context) -> pb.ListExperimentsResponse:
        where = filter_from_pb(request)
        return experiment_page_to_pb(await self._core.list_experiments(where, request.page_size, request.page_token))

    async def CancelExperiment(
        self, request: pb.CancelExperimentRequest, context: Context
    ) -> pb.CancelExperimentResponse:
        experiment = await self._core.cancel(request.experiment_id)
        return pb.CancelExperimentResponse(experiment=experiment_to_pb(experiment))

    async def PauseExperiment(self, request: pb.PauseExperimentRequest, context: Context) -> pb.PauseExperimentResponse:
        experiment = await self._core.pause(request.experiment_id)
        return pb.PauseExperimentResponse(experiment=experiment_to_pb(experiment))

    async def ResumeExperiment(
        self, request: pb.ResumeExperimentRequest, context: Context
    ) -> pb.ResumeExperimentResponse:
        experiment = await self._core.resume(request.experiment_id, request.request_id)
        return pb.ResumeExperimentResponse(experiment=experiment_to_pb(experiment))

    async def RetryExperiment(self, request: pb.RetryExperimentRequest, context: Context) -> pb.RetryExperimentResponse:
        experiment = await self._core.retry(request.experiment_id, request.request_id)
        return pb.RetryExperimentResponse(experiment=experiment_to_pb(experiment))

    async def UpdateExperiment(
        self, request: pb.UpdateExperimentRequest, context: Context
    ) -> pb.UpdateExperimentResponse:
        experiment = await self._core.update(request.experiment_id, update_from_pb(request))
        return pb.UpdateExperimentResponse(experiment=experiment_to_pb(experiment))

    async def DeleteExperiment(
        self, request: pb.DeleteExperimentRequest, context: Context
    ) -> pb.DeleteExperimentResponse:
        await self._core.delete(request.experiment_id)
        return pb.DeleteExperimentResponse()

    async def WatchExperiment(
        self, request: pb.WatchExperimentRequest, context: Context
    ) -> AsyncIterator[pb.WatchExperimentResponse]:
        messages = self._core.watch(request.experiment_id, request.resume_token, list(request.kinds), _seconds(request))
        async with _closing(messages):
            async for message in messages:
                yield watch_message_to_pb(message)

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        page = await self._core.list_events(
            request.experiment_id, request.after_event_seq, request.page_size, request.page_token, list(request.kinds)
        )
        return event_page_to_pb(page)

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=run_to_pb(await self._core.get_run(request.run_id)))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        states = [RUN_STATES.member(state, f"states[{i}]") for i, state in enumerate(request.states)]
        page = await self._core.list_runs(
            request.experiment_id, request.page_size, request.page_token, states, _is_full(request.view)
        )
        return run_page_to_pb(page)

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        return pb.CancelRunResponse(run=run_to_pb(basic(await self._core.cancel_run(request.run_id))))

    async def ExportRuns(self, request: pb.ExportRunsRequest, context: Context) -> AsyncIterator[pb.ExportRunsResponse]:
        runs = self._core.export(request.experiment_id, request.start_run_index)
        batch: list[run_pb2.Run] = []
        room = EXPORT_BYTES
        async with _closing(runs):
            async for run in runs:
                message = run_to_pb(run)
                size = message.ByteSize()
                if batch and (size > room or len(batch) == EXPORT_RUNS):
                    yield pb.ExportRunsResponse(runs=batch)
                    batch, room = [], EXPORT_BYTES
                batch.append(message)
                room -= size
        if batch:
            yield pb.ExportRunsResponse(runs=batch)

    async def SummarizeExperiment(
        self, request: pb.SummarizeExperimentRequest, context: Context
    ) -> pb.SummarizeExperimentResponse:
        summary = await self._core.summarize(request.experiment_id)
        return pb.SummarizeExperimentResponse(summary=summary_to_pb(summary))

    async def ListModels(
        self, request: pb.RunnerServiceListModelsRequest, context: Context
    ) -> pb.RunnerServiceListModelsResponse:
        models = await self._core.list_models()
        return pb.RunnerServiceListModelsResponse(models=[model_to_pb(model) for model in models])

    async def ListScorers(
        self, request: pb.RunnerServiceListScorersRequest, context: Context
    ) -> pb.RunnerServiceListScorersResponse:
        scorers = await self._core.list_scorers()
        return pb.RunnerServiceListScorersResponse(scorers=[scorer_to_pb(scorer) for scorer in scorers])

    async def GetCacheStats(self, request: pb.GetCacheStatsRequest, context: Context) -> pb.GetCacheStatsResponse:
        return runner_stats_to_pb(await self._core.cache_stats())

    async def PurgeCache(self, request: pb.PurgeCacheRequest, context: Context) -> pb.PurgeCacheResponse:
        return pb.PurgeCacheResponse(deleted=await self._core.purge_cache(request.scope, request.model))


def _closing(iterator: AsyncIterator[Any]) -> Any:
    """Closes an async generator when the caller goes; other iterators have nothing to close."""
    return aclosing(iterator) if hasattr(iterator, "aclose") else AsyncExitStack()


def _seconds(request: pb.WatchExperimentRequest | pb.WatchRunRequest) -> float | None:
    return request.bookmark_interval.ToNanoseconds() / 1e9 if request.HasField("bookmark_interval") else None


def _is_full(view: int) -> bool:
    if view not in run_pb2.RunView.values():
        raise InvalidArgument(f"view: {view} is not a view that this version knows", field="view")
    return view == run_pb2.RUN_VIEW_FULL
