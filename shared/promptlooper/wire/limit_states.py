"""How far models may be asked, on the wire."""

from __future__ import annotations

from dataclasses import fields

from promptlooper.completion import LimitState
from promptlooper.v1 import adapter_service_pb2 as pb


def limit_to_pb(limit: LimitState) -> pb.LimitState:
    return pb.LimitState(**{field.name: getattr(limit, field.name) for field in fields(limit)})


def limit_from_pb(message: pb.LimitState) -> LimitState:
    return LimitState(
        message.key,
        message.max_concurrency,
        message.in_flight,
        message.waiting,
        message.waits_for,
        message.wait_ms,
        message.requests_per_minute if message.HasField("requests_per_minute") else None,
        message.tokens_per_minute if message.HasField("tokens_per_minute") else None,
        message.requests_left if message.HasField("requests_left") else None,
        message.tokens_left if message.HasField("tokens_left") else None,
        message.adapters,
    )
