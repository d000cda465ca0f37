"""Events on the wire: what watchers get and what NATS carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptlooper.run import Event
from promptlooper.v1 import events_pb2 as pb
from promptlooper.wire.scalars import moment, timestamp

# Details are JSON values, so the one time in them is whole microseconds since the epoch.
_TIMES = {"not_before": "not_before_us"}
_FIELDS = {
    fact: [(f.name, f.has_presence) for f in fact.DESCRIPTOR.fields if f.name not in _TIMES]
    for fact in (pb.ExperimentFact, pb.RunFact)
}


def event_to_pb(event: Event) -> pb.Event:
    """Raises ValueError where `detail` has a key that its fact has no field for."""
    message = pb.Event(
        experiment_id=event.experiment_id,
        event_seq=event.event_seq,
        project=event.project,
        kind=event.kind,
        event_time=timestamp(event.event_time),
        run_id=event.run_id or "",
        run_index=event.run_index,
        generation=event.generation,
    )
    if event.detail:
        if event.kind.startswith("run."):
            message.run.CopyFrom(_run_fact(event.detail))
        else:
            message.experiment.CopyFrom(pb.ExperimentFact(**event.detail))
    return message


def event_from_pb(message: pb.Event) -> Event:
    """`detail` has every field that is always set, and of the optional ones those that are."""
    match message.WhichOneof("detail"):
        case "run":
            detail = _detail(message.run)
        case "experiment":
            detail = _detail(message.experiment)
        case _:
            detail = {}
    return Event(
        experiment_id=message.experiment_id,
        event_seq=message.event_seq,
        project=message.project,
        kind=message.kind,
        event_time=moment(message.event_time),
        generation=message.generation,
        run_index=message.run_index if message.HasField("run_index") else None,
        detail=detail,
    )


def _run_fact(detail: Mapping[str, Any]) -> pb.RunFact:
    fields = dict(detail)
    not_before_us = fields.pop("not_before_us", None)
    fact = pb.RunFact(**fields)
    if not_before_us is not None:
        fact.not_before.FromMicroseconds(not_before_us)
    return fact


def _detail(fact: pb.ExperimentFact | pb.RunFact) -> dict[str, Any]:
    detail = {
        name: getattr(fact, name)
        for name, has_presence in _FIELDS[type(fact)]
        if not has_presence or fact.HasField(name)  # type: ignore[arg-type]
    }
    if isinstance(fact, pb.RunFact) and fact.HasField("not_before"):
        detail["not_before_us"] = fact.not_before.ToMicroseconds()
    return detail
