"""Scores of outputs on the wire."""

from __future__ import annotations

from promptlooper.scoring import ScoreItem, ScorerCall, ScorerCheck, ScorerInfo, ScoreValue
from promptlooper.v1 import scorer_service_pb2 as pb
from promptlooper.wire.scalars import object_of, object_text, text_of, value_of, value_text


def call_to_pb(call: ScorerCall) -> pb.ScorerCall:
    return pb.ScorerCall(
        type=call.type,
        value_json=value_text(call.value, "value_json"),
        settings_json=object_text(call.settings, "settings_json"),
        output=call.output,
    )


def call_from_pb(message: pb.ScorerCall, field: str = "call") -> ScorerCall:
    return ScorerCall(
        message.type,
        value_of(message.value_json, f"{field}.value_json"),
        object_of(message.settings_json, f"{field}.settings_json"),
        message.output if message.HasField("output") else None,
    )


def item_to_pb(item: ScoreItem) -> pb.ScoreItem:
    return pb.ScoreItem(
        output=item.output,
        latency_ms=item.latency_ms,
        cost_nanousd=item.cost_nanousd,
        calls=[call_to_pb(call) for call in item.calls],
        traceparent=item.traceparent,
    )


def item_from_pb(message: pb.ScoreItem, field: str = "item") -> ScoreItem:
    return ScoreItem(
        message.output,
        tuple(call_from_pb(call, f"{field}.calls[{i}]") for i, call in enumerate(message.calls)),
        message.latency_ms,
        message.cost_nanousd if message.HasField("cost_nanousd") else None,
        message.traceparent,
    )


def value_to_pb(value: ScoreValue) -> pb.ScoreValue:
    return pb.ScoreValue(
        value=value.value,
        explanation=value.explanation,
        error=value.error or "",
        metadata_json=object_text(value.metadata, "metadata_json"),
    )


def value_from_pb(message: pb.ScoreValue, field: str = "value") -> ScoreValue:
    return ScoreValue(
        message.value if message.HasField("value") else None,
        message.explanation,
        message.error or None,
        object_of(message.metadata_json, f"{field}.metadata_json"),
    )


def check_to_pb(check: ScorerCheck) -> pb.ScorerCheck:
    return pb.ScorerCheck(
        type=check.type,
        value_json=value_text(check.value, "value_json"),
        settings_json=object_text(check.settings, "settings_json"),
        value_is_template=check.value_is_template,
    )


def check_from_pb(message: pb.ScorerCheck, field: str = "scorer") -> ScorerCheck:
    return ScorerCheck(
        message.type,
        value_of(message.value_json, f"{field}.value_json"),
        object_of(message.settings_json, f"{field}.settings_json"),
        message.value_is_template,
    )


def scorer_to_pb(scorer: ScorerInfo) -> pb.ScorerInfo:
    return pb.ScorerInfo(
        type=scorer.type,
        description=scorer.description,
        value_schema_json=text_of(scorer.value_schema, "value_schema_json"),
        settings_schema_json=text_of(scorer.settings_schema, "settings_schema_json"),
        value_required=scorer.value_required,
    )


def scorer_from_pb(message: pb.ScorerInfo, field: str = "scorer") -> ScorerInfo:
    return ScorerInfo(
        message.type,
        message.description,
        object_of(message.value_schema_json, f"{field}.value_schema_json"),
        object_of(message.settings_schema_json, f"{field}.settings_schema_json"),
        message.value_required,
    )
