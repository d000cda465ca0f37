"""What a reader of the JetStream stream sees."""

from __future__ import annotations

from collections.abc import Awaitable

import nats
from nats.js.api import AckPolicy, ConsumerConfig

from promptlooper.runner.events.relay import STREAM
from promptlooper.testing.eventually import eventually


async def streamed(nats_url: str, experiment_id: str) -> list[int]:
    """The numbers of an experiment's events in the stream, in its order."""
    client = await nats.connect(nats_url)
    try:
        subscription = await client.jetstream().pull_subscribe(
            f"promptlooper.v1.events.*.{experiment_id}.>",
            stream=STREAM,
            config=ConsumerConfig(ack_policy=AckPolicy.NONE),
        )
        found: list[int] = []
        while (await subscription.consumer_info()).num_pending:
            batch = await subscription.fetch(500, timeout=5)
            found += [int((message.headers or {})["Promptlooper-Event-Seq"]) for message in batch]
        await subscription.unsubscribe()
    finally:
        await client.close()
    return found


async def whole_stream(nats_url: str, experiment_id: str, last: int, within: float = 30.0) -> list[int]:
    """The same, once the last event is there: the relay may be behind."""

    async def ended() -> list[int]:
        found = await streamed(nats_url, experiment_id)
        assert found, f"the stream has no event of {experiment_id}"
        assert found[-1] == last, f"the stream ends with event {found[-1]} of {last}"
        return found

    def ask() -> list[int] | Awaitable[list[int]]:
        return ended()

    return await eventually(ask, within)
