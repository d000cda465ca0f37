"""A live counter of the runs of every experiment, by state, from PromptLooper's events on NATS.

    python counter.py                                   # everything the stream holds, then live
    python counter.py --experiment ID --until-ended     # ends with the experiment
    python counter.py --from 1200                       # from a sequence of the stream; or `new`

Where NATS is, and who we are there, say the variables of NATS's own tools: NATS_URL, NATS_CREDS or NATS_USER and
NATS_PASSWORD.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections import Counter
from dataclasses import dataclass, field

import nats
from nats.js.api import ConsumerConfig, DeliverPolicy

from promptlooper.v1.events_pb2 import Event

STREAM = "PROMPTLOOPER_EVENTS"
STATES = {
    "run.started": "running",
    "run.waiting": "waiting",
    "run.completed": "completed",
    "run.failed": "failed",
    "run.cancelled": "cancelled",
}
ENDS = {"experiment.completed", "experiment.cancelled", "experiment.failed"}


@dataclass
class Count:
    """The runs of one experiment. A run that is retried moves on from the state that it had."""

    last_event_seq: int = 0
    states: dict[str, str] = field(default_factory=dict)
    runs: Counter[str] = field(default_factory=Counter)

    def takes(self, event: Event) -> bool:
        """Whether the event is news: after a failure NATS may deliver one again."""
        if event.event_seq <= self.last_event_seq:
            return False
        self.last_event_seq = event.event_seq
        if (state := STATES.get(event.kind)) is not None:
            if (before := self.states.get(event.run_id)) is not None:
                self.runs[before] -= 1
            self.runs[state] += 1
            self.states[event.run_id] = state
        return True

    def __str__(self) -> str:
        return ", ".join(f"{self.runs[state]} {state}" for state in STATES.values()) + f" (event {self.last_event_seq})"


def show(line: str, *, stays: bool) -> None:
    """On a terminal a line is overwritten by the next one unless it stays."""
    if sys.stdout.isatty():
        print(f"\r\x1b[2K{line}", end="\n" if stays else "", flush=True)
    else:
        print(line, flush=True)


def start_of(where: str) -> ConsumerConfig:
    if where in ("all", "new"):
        return ConsumerConfig(deliver_policy=DeliverPolicy(where))
    return ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=int(where))


async def report(error: Exception) -> None:
    print(f"NATS: {str(error) or repr(error)}", file=sys.stderr)


async def count(project: str, experiment: str, start: ConsumerConfig, *, until_ended: bool) -> None:

    user = os.environ.get("NATS_USER")
    client = await nats.connect(
        os.environ.get("NATS_URL", "nats://127.0.0.1:4222"),
        user=user,
        password=os.environ.get("NATS_PASSWORD"),
        user_credentials=os.environ.get("NATS_CREDS"),
        inbox_prefix=f"_INBOX_{user}" if user else "_INBOX",  # the only inbox that permissions.conf allows us
        max_reconnect_attempts=-1,
        error_cb=report,
    )
    # Ordered: the client makes the consumer again where a message was lost, from there on. Nothing is acknowledged.
    events = await client.jetstream().subscribe(
        f"promptlooper.v1.events.{project}.{experiment}.>",
        stream=STREAM,
        ordered_consumer=True,
        config=start,
    )
    counts: dict[str, Count] = {}
    async for message in events.messages:
        event = Event.FromString(message.data)
        if event.kind == "experiment.deleted":
            counts.pop(event.experiment_id, None)
        elif (counted := counts.setdefault(event.experiment_id, Count())).takes(event):
            has_ended = event.kind in ENDS
            show(f"{event.experiment_id} {event.experiment.state or 'RUNNING'}: {counted}", stays=has_ended)
            if has_ended and until_ended:
                break
    await events.unsubscribe()  # before the connection is closed: an ordered consumer with unread messages holds it up
    await client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="*")
    parser.add_argument("--experiment", default="*", metavar="ID")
    parser.add_argument("--from", default="all", dest="start", type=start_of, metavar="all|new|SEQUENCE")
    parser.add_argument("--until-ended", action="store_true", help="end with the first experiment that ends")
    options = parser.parse_args()
    try:
        asyncio.run(count(options.project, options.experiment, options.start, until_ended=options.until_ended))
    except (nats.errors.Error, OSError) as error:
        sys.exit(f"NATS: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
