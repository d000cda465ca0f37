"""Experiments as clients give them, files and rendered runs, on the wire."""

from __future__ import annotations

from promptlooper.errors import InvalidArgument
from promptlooper.experiment import ExperimentSpec
from promptlooper.sources import (
    USUAL_PATH,
    ExperimentSource,
    FilePiece,
    FileReference,
    RenderedRun,
    RenderedStage,
    Uploaded,
)
from promptlooper.v1 import runner_service_pb2 as pb
from promptlooper.wire.completion import (
    message_from_pb,
    message_to_pb,
    schema_of,
    schema_text,
    tool_from_pb,
    tool_to_pb,
)
from promptlooper.wire.experiment import spec_from_pb, spec_to_pb
from promptlooper.wire.scalars import object_of, object_text


def reference_to_pb(file: FileReference) -> pb.FileReference:
    return pb.FileReference(path=file.path, sha256=file.sha256, size=file.size)


def reference_from_pb(message: pb.FileReference) -> FileReference:
    return FileReference(message.path, message.sha256, message.size)


def source_to_pb(source: ExperimentSource) -> pb.ExperimentSource:
    return pb.ExperimentSource(path=source.path, text=source.text, files=map(reference_to_pb, source.files))


def source_from_pb(message: pb.ExperimentSource) -> ExperimentSource:
    return ExperimentSource(message.text, message.path or USUAL_PATH, tuple(map(reference_from_pb, message.files)))


def given_from_pb(
    message: pb.CreateExperimentRequest | pb.ValidateExperimentRequest,
) -> ExperimentSpec | ExperimentSource:
    """Raises InvalidArgument where both are set. With neither, an empty spec, whose problems say what is missing."""
    if message.HasField("source"):
        if message.HasField("spec"):
            raise InvalidArgument("spec and source are both set; set one", field="source")
        return source_from_pb(message.source)
    return spec_from_pb(message.spec)


def piece_to_pb(piece: FilePiece) -> pb.UploadFileRequest:
    return pb.UploadFileRequest(sha256=piece.sha256, size=piece.size, offset=piece.offset, data=piece.data)


def piece_from_pb(message: pb.UploadFileRequest) -> FilePiece:
    return FilePiece(message.sha256, message.size, message.offset, message.data)


def uploaded_to_pb(uploaded: Uploaded) -> pb.UploadFileResponse:
    return pb.UploadFileResponse(received_bytes=uploaded.received_bytes, complete=uploaded.complete)


def uploaded_from_pb(message: pb.UploadFileResponse) -> Uploaded:
    return Uploaded(message.received_bytes, message.complete)


def render_to_pb(experiment: ExperimentSpec | ExperimentSource | str, run_index: int) -> pb.RenderRunRequest:
    if isinstance(experiment, str):
        return pb.RenderRunRequest(experiment_id=experiment, run_index=run_index)
    if isinstance(experiment, ExperimentSource):
        return pb.RenderRunRequest(source=source_to_pb(experiment), run_index=run_index)
    return pb.RenderRunRequest(spec=spec_to_pb(experiment), run_index=run_index)


def experiment_of(message: pb.RenderRunRequest | pb.RunTarget) -> ExperimentSpec | ExperimentSource | str:
    """Of which experiment a run is. Raises InvalidArgument where nothing says it."""
    match message.WhichOneof("experiment"):
        case "spec":
            return spec_from_pb(message.spec)
        case "source":
            return source_from_pb(message.source)
        case "experiment_id":
            return message.experiment_id
    raise InvalidArgument("set one of spec, source and experiment_id", field="experiment_id")


def rendered_stage_to_pb(stage: RenderedStage) -> pb.RenderedStage:
    return pb.RenderedStage(
        stage_index=stage.stage_index,
        name=stage.name,
        model=stage.model,
        params_json=object_text(stage.params, "params"),
        messages=map(message_to_pb, stage.messages),
        problem=stage.problem,
        tools=[tool_to_pb(tool, f"tools[{i}]") for i, tool in enumerate(stage.tools)],
        tool_choice=stage.tool_choice,
        response_schema_json=schema_text(stage.response_schema, "response_schema_json"),
    )


def rendered_stage_from_pb(message: pb.RenderedStage) -> RenderedStage:
    return RenderedStage(
        message.stage_index,
        message.name,
        message.model,
        object_of(message.params_json, "params_json"),
        tuple(map(message_from_pb, message.messages)),
        message.problem,
        tuple(tool_from_pb(tool, f"tools[{i}]") for i, tool in enumerate(message.tools)),
        message.tool_choice,
        schema_of(message.response_schema_json, "response_schema_json"),
    )


def rendered_to_pb(run: RenderedRun) -> pb.RenderRunResponse:
    return pb.RenderRunResponse(
        run_index=run.run_index,
        runs=run.runs,
        variant_id=run.variant_id,
        label=run.label,
        input_id=run.input_id,
        repeat=run.repeat,
        stages=map(rendered_stage_to_pb, run.stages),
    )


def rendered_from_pb(message: pb.RenderRunResponse) -> RenderedRun:
    return RenderedRun(
        message.run_index,
        message.runs,
        message.variant_id,
        message.label,
        message.input_id,
        message.repeat,
        tuple(map(rendered_stage_from_pb, message.stages)),
    )
