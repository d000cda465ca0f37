"""What was asked with a request_id: the same again gets the first answer."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from promptlooper.errors import RequestIdReused
from promptlooper.runner.store.models import requests

KEPT_US = 7 * 24 * 3600 * 1_000_000


def first_answer(
    connection: sa.Connection, request_id: str, body_sha256: str, experiment_id: str, now_us: int
) -> str | None:
    """The experiment_id that the request got before; None for a new one, which is remembered with `experiment_id`.
    Raises RequestIdReused where it was asked with another body. Of concurrent calls with one request_id, one is
    new."""
    if (answer := known(connection, request_id, body_sha256)) is not None:
        return answer
    row = {"body_sha256": body_sha256, "experiment_id": experiment_id, "created_us": now_us}
    try:
        # The unique key settles races: a second writer waits here for the first one's commit.
        with connection.begin_nested():
            connection.execute(sa.insert(requests), {"request_id": request_id, **row})
    except IntegrityError:
        if (answer := known(connection, request_id, body_sha256)) is None:
            raise
        return answer
    return None


def known(connection: sa.Connection, request_id: str, body_sha256: str) -> str | None:
    """The experiment_id that the request got, None for a new one. Raises RequestIdReused."""
    query = sa.select(requests.c.body_sha256, requests.c.experiment_id).where(requests.c.request_id == request_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    if row.body_sha256 != body_sha256:
        raise RequestIdReused(
            f"request_id {request_id!r} was used before for something else; use a new one", request_id=request_id
        )
    return str(row.experiment_id)


def forget_old(connection: sa.Connection, now_us: int) -> None:
    connection.execute(sa.delete(requests).where(requests.c.created_us < now_us - KEPT_US))
