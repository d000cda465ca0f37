"""Runs that are asked for one at a time, on the wire."""

from __future__ import annotations

from promptlooper.experiments import Execution, OutputDelta, RunWatchMessage, StartedRun
from promptlooper.sources import ExperimentSource, RunTarget
from promptlooper.v1 import runner_service_pb2 as pb
from promptlooper.wire.events import event_from_pb, event_to_pb
from promptlooper.wire.experiment import spec_to_pb
from promptlooper.wire.experiments import experiment_from_pb, experiment_to_pb
from promptlooper.wire.run import run_from_pb, run_to_pb, stage_from_pb, stage_to_pb
from promptlooper.wire.scalars import value_of, value_text
from promptlooper.wire.sources import experiment_of, source_to_pb


def target_to_pb(target: RunTarget) -> pb.RunTarget:
    message = pb.RunTarget(variant_id=target.variant_id)
    if isinstance(target.experiment, str):
        message.experiment_id = target.experiment
    elif isinstance(target.experiment, ExperimentSource):
        message.source.CopyFrom(source_to_pb(target.experiment))
    else:
        message.spec.CopyFrom(spec_to_pb(target.experiment))
    if target.has_row:
        message.input_json = value_text(target.row, "input")
    return message


def target_from_pb(message: pb.RunTarget) -> RunTarget:
    has_row = message.HasField("input_json")
    row = value_of(message.input_json, "input_json") if has_row else None
    return RunTarget(experiment_of(message), message.variant_id, row, has_row)


def run_watch_to_pb(message: RunWatchMessage) -> pb.WatchRunResponse:
    return pb.WatchRunResponse(
        resume_token=message.resume_token,
        event_seq=message.event_seq,
        snapshot=None if message.snapshot is None else run_to_pb(message.snapshot),
        event=None if message.event is None else event_to_pb(message.event),
        bookmark=pb.WatchRunBookmark() if message.bookmark else None,
        terminal=None if message.terminal is None else run_to_pb(message.terminal),
    )


def run_watch_from_pb(message: pb.WatchRunResponse) -> RunWatchMessage:
    which = message.WhichOneof("message")
    return RunWatchMessage(
        resume_token=message.resume_token,
        event_seq=message.event_seq,
        snapshot=run_from_pb(message.snapshot) if which == "snapshot" else None,
        event=event_from_pb(message.event) if which == "event" else None,
        bookmark=which == "bookmark",
        terminal=run_from_pb(message.terminal) if which == "terminal" else None,
    )


def started_to_pb(started: StartedRun) -> pb.StartRunResponse:
    return pb.StartRunResponse(run_id=started.run_id, experiment=experiment_to_pb(started.experiment))


def started_from_pb(message: pb.StartRunResponse) -> StartedRun:
    return StartedRun(message.run_id, experiment_from_pb(message.experiment))


def delta_to_pb(delta: OutputDelta) -> pb.OutputDelta:
    return pb.OutputDelta(stage_index=delta.stage_index, stage=delta.stage, text=delta.text)


def delta_from_pb(message: pb.OutputDelta) -> OutputDelta:
    return OutputDelta(message.stage_index, message.stage, message.text)


def execution_to_pb(message: Execution) -> pb.ExecuteRunResponse:
    if message.delta is not None:
        return pb.ExecuteRunResponse(delta=delta_to_pb(message.delta))
    if message.stage is not None:
        return pb.ExecuteRunResponse(stage=stage_to_pb(message.stage))
    assert message.run is not None
    return pb.ExecuteRunResponse(run=run_to_pb(message.run))


def execution_from_pb(message: pb.ExecuteRunResponse) -> Execution:
    match message.WhichOneof("message"):
        case "delta":
            return Execution(delta=delta_from_pb(message.delta))
        case "stage":
            return Execution(stage=stage_from_pb(message.stage))
    return Execution(run=run_from_pb(message.run))
